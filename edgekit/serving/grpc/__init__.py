"""The Open Inference Protocol over gRPC, for the same ModelServer as HTTP.

No other room imports grpcio or protobuf.
"""

from __future__ import annotations

import os

# gRPC writes a line to stderr for each TLS handshake that fails, which strangers can cause without end.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
