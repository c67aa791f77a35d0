"""Sequences of known length become tensors, with ONNX Runtime's answers; no target but ONNX Runtime has sequences."""

import numpy as np
import pytest
from onnx import helper

from converters.frontends.onnx import canonical
from edgekit.runtimes.onnx import OnnxRuntime
from tests.simulators.models import model_of

N = helper.make_node
WEIGHTS = {
    "three": np.int64(3), "sizes": np.array([1, 2, 5], np.int64), "first": np.int64(0), "second": np.int64(1),
    "last": np.int64(-1), "eight": np.array([0, 8], np.int64),
}  # fmt: skip
CASES = {
    "equal-parts-and-a-rest": (
        [N("SplitToSequence", ["x", "three"], ["s"], axis=1), N("SequenceAt", ["s", "last"], ["y"])],
        2,
    ),
    "sizes": ([N("SplitToSequence", ["x", "sizes"], ["s"], axis=1), N("SequenceAt", ["s", "second"], ["y"])], 2),
    "single-ones": (
        [
            N("SplitToSequence", ["x"], ["s"], axis=1, keepdims=0),
            N("SequenceAt", ["s", "second"], ["a"]),
            N("SequenceAt", ["s", "last"], ["b"]),
            N("Mul", ["a", "b"], ["y"]),
        ],
        1,
    ),
    "joined": (
        [N("SplitToSequence", ["x", "sizes"], ["s"], axis=1), N("ConcatFromSequence", ["s"], ["y"], axis=1)],
        2,
    ),
    "stacked": (
        [
            N("SequenceConstruct", ["x", "x"], ["s"]),
            N("ConcatFromSequence", ["s"], ["y"], axis=1, new_axis=1),
        ],
        3,
    ),
    "changed": (
        [
            N("Neg", ["x"], ["n"]),
            N("SequenceEmpty", [], ["e"]),
            N("SequenceInsert", ["e", "x"], ["one"]),
            N("SequenceInsert", ["one", "n", "first"], ["two"]),
            N("Identity", ["two"], ["same"]),
            N("SequenceErase", ["same", "last"], ["s"]),
            N("SequenceAt", ["s", "first"], ["a"]),
            N("SequenceLength", ["same"], ["length"]),
            N("Cast", ["length"], ["count"], to=1),
            N("Mul", ["a", "count"], ["y"]),
        ],
        2,
    ),
    "of-each-other": (
        [
            N("SplitToSequence", ["x", "sizes"], ["s"], axis=1),
            N("SequenceAt", ["s", "last"], ["a"]),
            N("SplitToSequence", ["a", "three"], ["t"], axis=1),
            N("SequenceAt", ["t", "second"], ["y"]),
        ],
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sequences_become_tensors(name):
    """The answers are those of the file, and no node with a sequence is left."""
    nodes, axes = CASES[name]
    model = model_of(nodes, {"x": ["N", 8]}, {"y": ["N", *[None] * (axes - 1)]}, WEIGHTS)
    x = np.random.default_rng(0).normal(0, 1, (3, 8)).astype(np.float32)
    graph = canonical(model, "test")
    assert not [node.op_type for node in graph.nodes if "Sequence" in node.op_type]
    np.testing.assert_array_equal(graph.run({"x": x})["y"], OnnxRuntime(model.SerializeToString()).run({"x": x})["y"])


def test_a_place_that_the_input_decides_stays():
    """ONNX Runtime goes on with such a model."""
    nodes = [
        N("SplitToSequence", ["x", "three"], ["s"], axis=1),
        N("ReduceMax", ["x"], ["most"], keepdims=0),
        N("Cast", ["most"], ["place"], to=7),
        N("SequenceAt", ["s", "place"], ["a"]),
        N("ReduceSum", ["a"], ["y"], keepdims=1),
    ]
    model = model_of(nodes, {"x": [1, 6]}, {"y": [1, 1]}, WEIGHTS)
    graph = canonical(model, "test")
    assert "SequenceAt" in [node.op_type for node in graph.nodes]
    x = np.array([[0.5, 1.9, 0.1, 7.0, 8.0, 9.0]], np.float32)
    x[0, 3:] = 1.0
    assert graph.run({"x": x})["y"].item() == pytest.approx(3.0)
