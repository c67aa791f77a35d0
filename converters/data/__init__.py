"""Samples and labels: read from files and folders, split, and preprocessed as the device would.

Nothing here knows a model format or a runtime.
"""
