"""Activation ranges: histograms of each tensor on the calibration data, and the rules that read ranges from them.

Nothing here changes a graph or writes an artifact.
"""
