"""Answers to local applications: from the local model, or from the cloud tier as a fallback.

Nothing here installs a model; `update` hands over a verified folder.
"""
