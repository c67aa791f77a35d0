"""The Open Inference Protocol over gRPC.

Only this room imports grpcio; it serves the same ModelServer as HTTP.
"""
