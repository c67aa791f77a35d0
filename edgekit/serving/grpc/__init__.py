"""The Open Inference Protocol over gRPC, for the same ModelServer as HTTP.

No other room imports grpcio or protobuf.
"""
