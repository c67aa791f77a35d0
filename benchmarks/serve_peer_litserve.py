"""LitServe's API; importable, because it is sent to a worker process."""

# ruff: noqa: D102 - the methods are those that the framework names

from __future__ import annotations

import litserve
import numpy as np
from serve_peers import session


class Api(litserve.LitAPI):
    """Decode, run, encode."""

    def setup(self, device: str) -> None:
        self.session = session(self.model_path)

    def decode_request(self, request: dict) -> np.ndarray:
        return np.array(request["x"], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, output: np.ndarray) -> dict:
        return {"y": output.tolist()}
