"""Candidate artifacts: which are made, in which order, in which process, and how each one does on the data.

This room joins passes, backends and quality; it holds no numerical rule of its own.
"""
