"""Activation ranges: they are measured once on the calibration data and merged from histograms.

Nothing here changes a graph or writes an artifact.
"""
