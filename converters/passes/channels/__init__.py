"""Channels that can be removed from layers: how channels depend on each other, bounds of their values, removal.

Other passes do not belong here, and neither does the choice of a pruned artifact (converters/candidates/pruning.py).
"""
