"""The cost of one inference on a target, in instructions.

Estimates come from the graph and the target profile alone; nothing is run here.
"""
