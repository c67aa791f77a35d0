"""A small model with state: a leaky sum, in ONNX (opset 17) and as a bundle, with its answers step by step in numpy.

``hn`` = 0.5 ``h`` + ``x`` W, and ``y`` = gain * ``hn``. The batch is the second axis of the state (1, N, 4), as in
recurrent operators; the artifact of the bundle has it as the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import (
    MANIFEST_NAME,
    ROLE_GOLDEN,
    ROLE_MODEL,
    Golden,
    Manifest,
    Task,
    Tolerance,
    file_entry,
)
from edgekit.bundle.recipe import Recipe
from edgekit.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (None, 3))
H = TensorSpec("h", DType.FLOAT32, (1, None, 4))
Y = TensorSpec("y", DType.FLOAT32, (None, 4))
HN = TensorSpec("hn", DType.FLOAT32, (1, None, 4))
W = np.arange(12, dtype=np.float32).reshape(3, 4) / 8 - 0.5
GOLDEN_STEPS = 4


def steps(count: int, seed: int = 1) -> np.ndarray:
    """Inputs of a stream: (count, 1, 3)."""
    return np.random.default_rng(seed).standard_normal((count, 1, 3)).astype(np.float32)


def expected(x: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """The answers to a stream ``x`` (steps, 1, 3) from the zero state: (steps, 1, 4)."""
    h, answers = np.zeros((1, 4), np.float32), []
    for step in x:
        h = np.float32(0.5) * h + step @ W
        answers.append(np.float32(gain) * h)
    return np.stack(answers)


def streaming_model(*, gain: float = 1.0, batch_first: bool = False) -> bytes:
    """The ONNX model, with a free batch; with `batch_first` the state is (N, 1, 4)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Mul", ["h", "half"], ["kept"]),
        helper.make_node("Unsqueeze", ["xw", "axis"], ["added"]),
        helper.make_node("Add", ["kept", "added"], ["hn"]),
        helper.make_node("Squeeze", ["hn", "axis"], ["state"]),
        helper.make_node("Mul", ["state", "gain"], ["y"]),
    ]
    weights = {"w": W, "half": np.float32(0.5), "gain": np.float32(gain), "axis": np.array([int(batch_first)])}

    def info(spec: TensorSpec) -> onnx.ValueInfoProto:
        shape = ["n" if size is None else size for size in spec.shape]
        if batch_first and len(shape) == 3:
            shape = [shape[1], shape[0], shape[2]]
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "streaming",
        [info(X), info(H)],
        [info(Y), info(HN)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def streaming_bundle(folder: Path, *, name: str = "ear", version: str = "1.0.0", gain: float = 1.0) -> Manifest:
    """Write a bundle of the model; its golden samples are one stream."""
    folder.mkdir(parents=True, exist_ok=True)
    x = steps(GOLDEN_STEPS)
    model, golden = (
        streaming_model(gain=gain, batch_first=True),
        write_golden({"x": x[:, 0]}, {"y": expected(x, gain)[:, 0]}),
    )
    (folder / "model.onnx").write_bytes(model)
    (folder / "golden.npz").write_bytes(golden)
    manifest = Manifest(
        name=name,
        version=version,
        target="x86-64",
        runtime="onnxruntime",
        files=(file_entry("model.onnx", ROLE_MODEL, model), file_entry("golden.npz", ROLE_GOLDEN, golden)),
        inputs=(Binding(X, X), Binding(H, _batch_first(H), (1, 0, 2), state="hn")),
        outputs=(Binding(Y, Y), Binding(HN, _batch_first(HN), (1, 0, 2))),
        golden=Golden(GOLDEN_STEPS, (Tolerance("y", "onnxruntime", 1e-5),), False),
        recipe=Recipe(),
        task=Task(),
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return manifest


def _batch_first(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, (spec.shape[1], spec.shape[0], *spec.shape[2:]))
