"""MLServer's model: a runtime of its own, because none of those it ships runs ONNX."""

# ruff: noqa: D102 - the methods are those that the framework names

from __future__ import annotations

import os

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from serve_peers import session


class Model(MLModel):
    """Decode, run, encode."""

    async def load(self) -> bool:
        self.session = session(os.environ["EDGEKIT_BENCH_MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        x = np.array(tensor.data.root, np.float32).reshape(tensor.shape)
        (y,) = self.session.run(None, {tensor.name: x})
        output = ResponseOutput(name="y", shape=list(y.shape), datatype="FP32", data=y.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
