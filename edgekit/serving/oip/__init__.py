"""Open Inference Protocol v2: requests and responses as bytes, JSON and tensors.

Pure encoding and decoding; no sockets, no models.
"""
