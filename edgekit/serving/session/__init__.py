"""One loaded model: its instances, queue, batching, and what happens before and after a run.

Nothing here knows other models or a protocol.
"""
