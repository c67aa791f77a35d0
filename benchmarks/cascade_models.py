"""An edge and a cloud classifier of handwritten digits for the benchmark of cascades, and draws of its samples.

The networks are trained on 897 of scikit-learn's 1,797 scans. The other 900 are the population: a sample is one of
them, drawn with replacement, with fresh noise. So samples of a calibration and of a replay are independent draws of one
distribution, as a certificate asks for, and a shift (a slant, more noise) is another one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Task
from edgekit.tensors import Array, DType, TensorSpec
from tests.simulators.small_models import write_files

EDGE, CLOUD = "digits-edge", "digits-cloud"
TRAIN, NOISE, COPIES, SEED = 897, 0.2, 10, 20
PIXELS, CLASSES = 64, 10


class Population:
    """Scans of handwritten digits, and draws from them."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        scans, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(SEED).permutation(len(labels))
        self._scans, self._labels = scans[order] / 16.0, labels[order].astype(np.int64)

    def train(self, rng: np.random.Generator, copies: int, slant: float) -> tuple[Array, Array]:
        """`copies` noisy copies of the training scans, each with a random slant up to `slant`."""
        parts = [
            _disturbed(self._scans[:TRAIN], rng, NOISE, rng.uniform(-slant, slant) if slant else 0.0)
            for _ in range(copies)
        ]
        return np.concatenate(parts), np.tile(self._labels[:TRAIN], copies)

    def draw(
        self, n: int, rng: np.random.Generator, *, noise: float = NOISE, slant: float = 0.0
    ) -> tuple[Array, Array]:
        """`n` samples (n, 64) with labels (n,)."""
        rows = rng.integers(TRAIN, len(self._labels), n)
        return _disturbed(self._scans[rows], rng, noise, slant), self._labels[rows]


def _disturbed(scans: Array, rng: np.random.Generator, noise: float, slant: float) -> Array:
    from scipy import ndimage

    images = scans.reshape(-1, 8, 8)
    if slant:
        shear = np.array([[1, 0, 0], [0, 1, 0], [0, slant, 1]])  # columns move with the row
        images = ndimage.affine_transform(images, shear, offset=(0, 0, -3.5 * slant), order=1)
        images = images.reshape(-1, 8, 8)
    noisy = np.clip(images.reshape(len(scans), PIXELS) + rng.normal(0, noise, (len(scans), PIXELS)), 0, 1)
    result: Array = noisy.astype(np.float32)
    return result


def make_bundles(folder: Path, population: Population) -> tuple[Path, Path]:
    """Train both networks and write their bundles; the folders of the edge bundle (x86-64) and the cloud's (server)."""
    from sklearn.neural_network import MLPClassifier

    warnings.filterwarnings("ignore", message="(lbfgs failed|Stochastic Optimizer)")  # both stop early, on purpose
    rng = np.random.default_rng(SEED)
    edge = MLPClassifier((10,), solver="lbfgs", max_iter=40, alpha=1e-3, random_state=SEED)
    cloud = MLPClassifier((256,), max_iter=25, learning_rate_init=0.002, batch_size=256, alpha=1e-3, random_state=SEED)
    edge.fit(*population.train(rng, 1, 0.0))
    cloud.fit(*population.train(rng, COPIES, 0.1))
    x, _ = population.draw(16, rng)
    for name, target, network in ((EDGE, "x86-64", edge), (CLOUD, "server", cloud)):
        inputs, outputs = (TensorSpec(one, DType.FLOAT32, (None, size)) for one, size in (("x", 64), ("scores", 10)))
        write_files(
            folder / name,
            model=("model.onnx", bytes(onnx_of(network).SerializeToString())),
            golden=write_golden({"x": x}, {"scores": network.predict_proba(x).astype(np.float32)}),
            identity={"name": name, "version": "1.0.0", "target": target, "runtime": "onnxruntime"},
            inputs=(Binding(inputs, inputs),),
            outputs=(Binding(outputs, outputs),),
            max_abs=1e-4,
            samples=16,
            task=Task("classification", "scores", "probabilities"),
        )
    return folder / EDGE, folder / CLOUD


def onnx_of(network: Any) -> onnx.ModelProto:
    """A scikit-learn classifier with ReLU layers as an ONNX graph: ``x`` (n, 64) to ``scores`` (n, 10), a softmax."""
    nodes, weights, last = [], [], "x"
    layers = list(zip(network.coefs_, network.intercepts_, strict=True))
    for at, (matrix, offset) in enumerate(layers):
        weights += [numpy_helper.from_array(matrix.astype(np.float32), f"w{at}")]
        weights += [numpy_helper.from_array(offset.astype(np.float32), f"b{at}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{at}", f"b{at}"], [f"g{at}"]))
        last = f"h{at}"
        final = at == len(layers) - 1
        nodes.append(helper.make_node("Softmax" if final else "Relu", [f"g{at}"], ["scores" if final else last]))
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", PIXELS), ("scores", CLASSES))
    ]
    graph = helper.make_graph(nodes, "digits", *infos, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
