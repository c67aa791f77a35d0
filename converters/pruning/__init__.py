"""Pruning of channels that are not dead: which channels go, how many of each group, and the refit of later layers.

Nothing here makes an artifact, or reads the samples that choose and prove one: it works on the calibration split.
"""
