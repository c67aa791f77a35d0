"""Calibrates an edge model and a cloud model together, and certifies the threshold between them.

No file here imports a runtime or a framework: both models are run by functions that the caller gives.
"""
