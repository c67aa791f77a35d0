"""A model in a process of its own, with tensors in shared memory.

It offers the same Runtime protocol as a runtime in this process.
"""
