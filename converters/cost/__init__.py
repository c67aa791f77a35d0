"""The cost of one inference on a target: estimates from a file or a graph, and instructions that are counted.

Runs of an artifact are started in `measuring` only; what is chosen by a cost does not belong here.
"""
