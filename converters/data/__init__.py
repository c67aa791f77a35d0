"""Samples and labels: reading from files and folders, splitting, and preprocessing as on devices.

Nothing here knows a model format or a runtime.
"""
