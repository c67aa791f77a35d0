"""The LitServe API of the serving benchmark. A module of its own, because a worker process imports it."""

# ruff: noqa: D102 - the framework defines the methods

from __future__ import annotations

from typing import Any

import litserve
import numpy as np
from serve_peers import session


class Api(litserve.LitAPI):
    """Decodes a JSON request, runs the model, encodes the answer."""

    def setup(self, device: str) -> None:
        self.session = session(self.model_path)

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        return np.array(request["x"], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"y": output.tolist()}
