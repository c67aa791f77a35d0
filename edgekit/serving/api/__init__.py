"""The serving interface that HTTP and gRPC share: ModelServer, its documents and model descriptions.

Nothing here knows HTTP or gRPC.
"""
