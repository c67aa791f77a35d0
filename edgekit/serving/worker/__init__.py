"""A model in a process of its own (a worker), with tensors in shared memory.

This room runs one bundle and knows nothing of queues, other models or network protocols.
"""
