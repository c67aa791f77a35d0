"""Small ONNX models and data for tests."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.graph.graph import Graph


def model_of(nodes, inputs, outputs, weights=None, *, opset=17, domains=()):
    """A model with float inputs and outputs: {name: shape}."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def patterns(rows, *, classes=3, size=8, seed=0):
    """Noisy images (rows, 1, size, size) with labels: horizontal and vertical stripes, chequerboards, plain grey."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:size, 0:size] % 2
    kinds = np.stack([down, across, down ^ across, np.full((size, size), 0.5)])
    labels = rng.integers(0, classes, rows)
    images = kinds[labels] + rng.normal(0, 0.1, (rows, size, size))
    return images[:, None].astype(np.float32), labels


def classifier(*, batch="batch", size=8, classes=3, seed=0, softmax=True):
    """A channel-first classifier of `patterns`: Conv, BatchNormalization, Relu, GlobalAveragePool, Gemm, Softmax.

    The convolution is random and the dense layer is fitted to it by least squares.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(0, 0.4, (6, 1, 3, 3)).astype(np.float32),
        "gamma": rng.uniform(0.5, 1.5, 6).astype(np.float32),
        "beta": rng.normal(0, 0.1, 6).astype(np.float32),
        "mean": rng.normal(0, 0.1, 6).astype(np.float32),
        "var": rng.uniform(0.5, 1.5, 6).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
    ]
    images, labels = patterns(200, classes=classes, size=size, seed=seed)
    features = Graph(model_of(nodes, {"image": ["batch", 1, size, size]}, {"f": ["batch", 6]}, weights))
    known = np.column_stack([features.run({"image": images})["f"], np.ones(len(labels))])
    fitted = np.linalg.lstsq(known, 10.0 * np.eye(classes)[labels], rcond=None)[0].astype(np.float32)
    weights.update(dense=fitted[:-1], bias=fitted[-1])
    nodes.append(helper.make_node("Gemm", ["f", "dense", "bias"], ["logits" if softmax else "scores"], name="dense"))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=-1, name="softmax"))
    return model_of(nodes, {"image": [batch, 1, size, size]}, {"scores": [batch, classes]}, weights)


def saved(model, path: Path) -> Path:
    """Write a model and return its path."""
    onnx.save(model, path)
    return path


def labelled_data(path: Path, *, rows=500, seed=3) -> Path:
    """Write an .npz with patterns (x) and their classes (y), and return its path."""
    images, labels = patterns(rows, seed=seed)
    np.savez(path, x=images, y=labels)
    return path
