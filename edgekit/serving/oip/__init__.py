"""Open Inference Protocol v2: requests and responses as bytes, JSON and tensors.

This room only encodes and decodes; it opens no sockets and runs no models.
"""
