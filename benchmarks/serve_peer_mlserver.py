"""The MLServer model of the serving benchmark: a custom runtime, because MLServer ships none for ONNX."""

# ruff: noqa: D102 - the framework defines the methods

from __future__ import annotations

import os

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from serve_peers import session


class Model(MLModel):
    """Decodes a request, runs the model, encodes the answer."""

    async def load(self) -> bool:
        self.session = session(os.environ["EDGEKIT_BENCH_MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        x = np.array(tensor.data.root, np.float32).reshape(tensor.shape)
        (y,) = self.session.run(None, {tensor.name: x})
        output = ResponseOutput(name="y", shape=list(y.shape), datatype="FP32", data=y.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
