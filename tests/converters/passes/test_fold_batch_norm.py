"""Folding batch normalization into the layer before it, also through a reshape."""

import numpy as np
import pytest
from onnx import helper

from converters.graph.graph import Graph
from converters.passes import FoldBatchNorm
from tests.simulators.models import model_of

NODE = helper.make_node


def norm(rng, channels):
    """Constants of a BatchNormalization; it moves and scales every channel differently."""
    draw = {name: rng.normal(0, 1, channels).astype(np.float32) for name in ("gamma", "beta", "mean")}
    return {**draw, "variance": rng.uniform(0.5, 2, channels).astype(np.float32)}


def through(nodes, shape, weights, output, reshape, *, rng):
    """A graph of `nodes`, a reshape to two axes, a BatchNormalization, and the batch in front again."""
    constants = {**weights, **norm(rng, output[-1]), "result": np.array([0 if output[0] == "N" else 1, -1], np.int64)}
    chain = [*nodes, reshape, NODE("BatchNormalization", ["flat", "gamma", "beta", "mean", "variance"], ["normed"])]
    chain.append(NODE("Reshape", ["normed", "result"], ["y"]))
    rows = [output[0], output[1]] if output[0] == "N" else [1, output[0] * output[1]]
    return Graph(model_of(chain, {"x": shape}, {"y": rows}, constants))


CONV = NODE("Conv", ["x", "w", "b"], ["maps"])
DENSE = NODE("MatMul", ["x", "w"], ["maps"])
FLATTEN = NODE("Flatten", ["maps"], ["flat"])
SHAPE = NODE("Reshape", ["maps", "shape"], ["flat"])


@pytest.mark.parametrize(
    ("layer", "shape", "weights", "output", "reshape"),
    [
        (CONV, ["N", 3, 4, 4], {"w": (6, 3, 4, 4), "b": (6,)}, ["N", 6], FLATTEN),
        (CONV, [1, 3, 4, 4], {"w": (6, 3, 4, 4), "b": (6,), "shape": [-1, 6]}, [1, 6], SHAPE),
        (DENSE, [1, 5, 3], {"w": (3, 6)}, [5, 6], NODE("Flatten", ["maps"], ["flat"], axis=2)),
        (DENSE, [1, 5, 3], {"w": (3, 6), "shape": [-1, 6]}, [5, 6], SHAPE),
    ],
    ids=["conv-flatten", "conv-reshape", "dense-flatten", "dense-reshape"],
)
def test_a_reshape_that_keeps_the_channels_is_passed(layer, shape, weights, output, reshape):
    """The embedding head of ArcFace and the attention of LeViT: their 4-bit layers were lost to a later factor."""
    rng = np.random.default_rng(3)
    made = {
        name: np.array(of, np.int64) if name == "shape" else rng.normal(0, 1, of).astype(np.float32)
        for name, of in weights.items()
    }
    graph = through([layer], shape, made, output, reshape, rng=rng)
    x = rng.normal(0, 1, [size if size != "N" else 2 for size in shape]).astype(np.float32)
    folded = FoldBatchNorm().run(graph)
    assert "BatchNormalization" not in folded.operators
    np.testing.assert_allclose(folded.run({"x": x})["y"], graph.run({"x": x})["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [[-1, 6], [4, 24]])
def test_a_reshape_that_mixes_the_channels_stays(shape):
    """Rows of pixels, or channels with pixels in them, have other factors than the channels of the layer."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(0, 1, (6, 3, 1, 1)).astype(np.float32), "b": np.zeros(6, np.float32)}
    rows = 6 * 16 // shape[1]
    made = {**weights, "shape": np.array(shape, np.int64)}
    graph = through([CONV], [1, 3, 4, 4], made, [rows, shape[1]], SHAPE, rng=rng)
    assert not FoldBatchNorm().applies(graph)


def test_axes_that_are_not_the_channels_stay():
    """Behind a MatMul of three axes, BatchNormalization scales the second axis, and the MatMul's channels are last."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(0, 1, (3, 5)).astype(np.float32)}
    nodes = [DENSE, NODE("BatchNormalization", ["maps", "gamma", "beta", "mean", "variance"], ["y"])]
    graph = Graph(model_of(nodes, {"x": [1, 5, 3]}, {"y": [1, 5, 5]}, {**weights, **norm(rng, 5)}))
    assert not FoldBatchNorm().applies(graph)
