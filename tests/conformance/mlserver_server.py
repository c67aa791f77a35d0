"""MLServer with one small model, in MLServer's own environment: mlserver_server.py PORT GRPC_PORT."""

import asyncio
import sys

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Small(MLModel):
    """softmax(x * 10) as ``scores``, and an output of a datatype of its own that no device asked for."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        x = np.array(tensor.data.root, np.float32).reshape(tensor.shape)
        e = np.exp(x * 10 - (x * 10).max(axis=1, keepdims=True))
        scores = (e / e.sum(axis=1, keepdims=True)).ravel().tolist()
        outputs = [
            ResponseOutput(name="scores", shape=list(x.shape), datatype="FP32", data=scores),
            ResponseOutput(name="tag", shape=[len(x), 1], datatype="FP32", data=[99.0] * len(x)),
            ResponseOutput(name="words", shape=[len(x)], datatype="BYTES", data=["cat"] * len(x)),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


if __name__ == "__main__":
    settings = Settings(
        host="127.0.0.1",
        http_port=int(sys.argv[1]),
        grpc_port=int(sys.argv[2]),
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    model = ModelSettings(name="big", implementation="mlserver_server.Small")
    asyncio.run(MLServer(settings).start([model]))
