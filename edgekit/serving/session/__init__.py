"""One loaded model: its instances, queue, batching, and the processing before and after a run.

Nothing here knows other models or a network protocol.
"""
