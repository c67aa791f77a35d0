"""Candidate artifacts: which are made, in which order and process, and how each one is measured.

This room joins passes, backends and quality; numerical rules live there and not here.
"""
