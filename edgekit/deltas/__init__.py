"""Deltas: the bytes by which one file becomes another; what they say, how they are made and how they are applied."""
