"""Runs an artifact in a process of its own and measures it: instructions, memory, time. The process may be emulated.

`subject` is what runs there; it imports nothing that an aarch64 Python of `make arm` has not.
"""
