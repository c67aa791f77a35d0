"""Fuzz tests of the parsers of untrusted input."""
