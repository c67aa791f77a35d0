"""KServe's model server with one small model, in KServe's own environment: kserve_server.py PORT."""

import sys

import numpy as np
from kserve import InferOutput, InferResponse, Model, ModelServer


class Small(Model):
    """softmax(x * 10) as ``scores``, and an output of text that no device asked for."""

    def load(self) -> bool:
        self.ready = True
        return True

    async def predict(self, payload, headers=None):
        tensor = payload.inputs[0]
        x = tensor.as_numpy()
        e = np.exp(x * 10 - (x * 10).max(axis=1, keepdims=True))
        binary = bool(tensor.parameters and "binary_data_size" in tensor.parameters)
        scores = InferOutput(name="scores", shape=list(x.shape), datatype="FP32")
        scores.set_data_from_numpy((e / e.sum(axis=1, keepdims=True)).astype(np.float32), binary_data=binary)
        tag = InferOutput(name="tag", shape=[len(x), 1], datatype="FP32")
        tag.set_data_from_numpy(np.full((len(x), 1), 99, np.float32), binary_data=binary)
        words = InferOutput(name="words", shape=[len(x)], datatype="BYTES", data=["cat"] * len(x))
        return InferResponse(payload.id, self.name, [scores, tag, words])


if __name__ == "__main__":
    model = Small("big")
    model.load()
    ModelServer(http_port=int(sys.argv[1]), grpc_port=0, enable_grpc=False, workers=1).start([model])
