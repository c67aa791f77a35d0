"""Runs a bundle on another version of its runtime, and compares it with the version that the bundle was made with.

The other version gets an environment of its own in the user's cache; a child process there answers.
"""
