"""Reads and rewrites .tflite files as bytes: operators, weights, ranges, biases, and the removal of unused parts.

Nothing here knows a recipe, a target or another file format.
"""
