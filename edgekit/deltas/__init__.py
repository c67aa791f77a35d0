"""Deltas, which make one file from another: their description, their codecs, and how they are made and applied.

The choice of base bundles belongs to edgekit.registry, the download of deltas to device_agents.download.
"""
