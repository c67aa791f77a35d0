"""Model files that contain only weights, in both formats, for code that finds tensors but never runs a model."""

from __future__ import annotations

import flatbuffers
import numpy as np
from onnx import TensorProto, helper, numpy_helper


def int8_weights(seed: int, *sizes: int) -> dict[str, np.ndarray]:
    """Normally distributed int8 weights, by name."""
    rng = np.random.default_rng(seed)
    return {
        f"w{at}": np.clip(rng.normal(0, 30, size).round(), -127, 127).astype(np.int8) for at, size in enumerate(sizes)
    }


def retrained(weights: dict[str, np.ndarray], seed: int, share: float = 0.05) -> dict[str, np.ndarray]:
    """The weights with a share of them changed by one to three steps."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, values in weights.items():
        steps = rng.choice(np.array([-3, -2, -1, 1, 2, 3], np.int8), values.shape)
        moved[name] = np.where(rng.random(values.shape) < share, values + steps, values).astype(np.int8)
    return moved


def onnx_file(weights: dict[str, np.ndarray], *, constants: bool = False) -> bytes:
    """An ONNX model with the weights as initializers, or as the values of Constant nodes."""
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    nodes = []
    if constants:
        nodes = [helper.make_node("Constant", [], [f"{tensor.name}_out"], value=tensor) for tensor in tensors]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "weights", [x], [y], [] if constants else tensors)
    return bytes(helper.make_model(graph).SerializeToString())


def litert_file(weights: dict[str, np.ndarray], description: str = "weights") -> bytes:
    """A LiteRT model with the weights as constant tensors."""
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description, model.subgraphs = 3, description, [graph]
    model.buffers, graph.tensors = [schema.BufferT()], []
    for name, values in weights.items():
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.shape, tensor.buffer = name, list(values.shape), len(model.buffers)
        tensor.type = schema.TensorType.INT8
        buffer.data = values.reshape(-1).view(np.uint8)
        model.buffers.append(buffer)
        graph.tensors.append(tensor)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
