"""The BentoML service of the serving benchmark."""

# ruff: noqa: D102 - the framework defines the methods

import os

import bentoml
import numpy as np
from serve_peers import session


@bentoml.service(workers=1, http={"host": "127.0.0.1"}, logging={"access": {"enabled": False}})
class Onnx:
    """Decodes a JSON request, runs the model, encodes the answer."""

    def __init__(self) -> None:
        self.session = session(os.environ["EDGEKIT_BENCH_MODEL"])

    @bentoml.api
    def predict(self, x: list[list[float]]) -> list[list[float]]:
        return self.session.run(None, {"x": np.array(x, np.float32)})[0].tolist()
