"""Answers to applications: the local model first, the cloud tier as the second place.

Nothing here installs a model; `update` hands over a verified folder.
"""
