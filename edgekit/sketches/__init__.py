"""Mergeable histograms: of tensors in calibration, and of what devices measure while they serve.

Bin widths are powers of two, so any two merge exactly, in any order. Nothing here stores or sends them.
"""
