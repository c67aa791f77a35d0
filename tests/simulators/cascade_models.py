"""A linear edge model that is often wrong where its score is low, a better cloud model, and samples for both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Manifest, Task
from edgekit.tensors import DType, TensorSpec
from tests.simulators.small_models import write_files

CLASSES, FEATURES = 4, 8
LOGITS = Task("classification", "scores", "logits")
_TRUTH = np.random.default_rng(40).normal(0, 1.5, (FEATURES, CLASSES)).astype(np.float32)
_ERROR = np.random.default_rng(41).normal(0, 1.0, (FEATURES, CLASSES)).astype(np.float32)


def samples(n: int, *, seed: int, labels: bool = True) -> dict[str, np.ndarray]:
    """Samples ``x`` (N, FEATURES) and labels ``y``, which no model knows exactly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, FEATURES)).astype(np.float32)
    y = (x @ _TRUTH + rng.gumbel(0, 0.4, (n, CLASSES))).argmax(axis=1)
    return {"x": x, "y": y} if labels else {"x": x}


def edge_bundle(folder: Path, *, version: str = "1.0.0", flaw: float = 0.6) -> Manifest:
    """Write the edge bundle ``pair``; a larger `flaw` makes it wrong more often."""
    return _bundle(folder, "pair", version, "x86-64", _TRUTH + flaw * _ERROR)


def cloud_bundle(folder: Path, *, version: str = "1.0.0", flaw: float = 0.05) -> Manifest:
    """Write the cloud bundle ``pair-cloud``."""
    return _bundle(folder, "pair-cloud", version, "server", _TRUTH + flaw * _ERROR)


def _bundle(folder: Path, name: str, version: str, target: str, weights: np.ndarray) -> Manifest:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["scores"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    x = samples(4, seed=1)["x"]
    specs = (TensorSpec("x", DType.FLOAT32, (None, FEATURES)), TensorSpec("scores", DType.FLOAT32, (None, CLASSES)))
    return write_files(
        folder,
        model=("model.onnx", bytes(model.SerializeToString())),
        golden=write_golden({"x": x}, {"scores": x @ weights}),
        identity={"name": name, "version": version, "target": target, "runtime": "onnxruntime"},
        inputs=(Binding(specs[0], specs[0]),),
        outputs=(Binding(specs[1], specs[1]),),
        max_abs=1e-4,
        samples=4,
        task=LOGITS,
    )
