import numpy as np
import pytest

from converters.calibration.calibrate import calibrate
from converters.calibration.masks import Step, dividing, masked, masking_nodes, normalizing, steps_of
from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.passes import BoundMasks, run_pass
from tests.simulators import models

node = models.helper.make_node
LOWEST = float(np.finfo(np.float32).min)


def scores(form, value):
    """Scores x (N, 4, 4) with a mask m (N, 1, 4), as frameworks write it, and a softmax."""
    written = {
        "added": [
            node("Sub", ["one", "m"], ["off"], name="off"),
            node("Mul", ["off", "value"], ["far"], name="far"),
            node("Add", ["x", "far"], ["s"], name="sum"),
        ],
        "chosen": [
            node("Greater", ["m", "zero"], ["on"], name="on"),
            node("Where", ["on", "x", "value"], ["s"], name="choice"),
        ],
    }[form]
    nodes = [*written, node("Softmax", ["s"], ["p"], name="softmax"), node("MatMul", ["p", "w"], ["y"], name="product")]
    constants = {
        "one": np.float32(1),
        "zero": np.float32(0),
        "value": np.float32(value),
        "w": np.eye(4, dtype=np.float32),
    }
    return Graph(
        models.model_of(nodes, {"x": ["batch", 4, 4], "m": ["batch", 1, 4]}, {"y": ["batch", 4, 4]}, constants)
    )


@pytest.mark.parametrize(
    ("form", "expected"), [("added", {"far", "sum", "softmax"}), ("chosen", {"choice", "softmax"})]
)
@pytest.mark.parametrize("value", [-10000.0, -1e9, LOWEST, -np.inf])
def test_nodes_from_a_mask_to_its_softmax_stay_float(form, expected, value):
    """Whatever the constant of the mask is, the sums that no 8-bit scale can hold are found, and nothing else."""
    assert masking_nodes(scores(form, value)) == expected


def test_ordinary_constants_are_no_mask():
    """A scale of scores, or a huge factor that no softmax follows, keeps its 8 bits."""
    assert masking_nodes(scores("added", -3.0)) == set()
    nodes = [node("Mul", ["x", "k"], ["y"])]
    steps = steps_of(Graph(models.model_of(nodes, {"x": ["batch", 2]}, {"y": ["batch", 2]}, {"k": np.float32(-1e5)})))
    assert masked(*steps) == set()


@pytest.mark.parametrize(("form", "value"), [("chosen", -np.inf), ("chosen", LOWEST), ("added", LOWEST)])
def test_infinite_constants_of_masks_are_bounded(form, value):
    """The answers stay, also for a row where all is masked, and every tensor can be calibrated."""
    graph = scores(form, value)
    result = run_pass(BoundMasks(), graph)
    assert result.modified
    x = np.random.default_rng(1).normal(0, 3, (5, 4, 4)).astype(np.float32)
    mask = np.tril(np.ones((5, 4), np.float32))[:, None]
    inputs = {"x": x, "m": mask}
    np.testing.assert_allclose(result.graph.run(inputs)["y"], graph.run(inputs)["y"], atol=1e-6)
    assert calibrate(result.graph, Samples(inputs)).rows == 5
    assert not BoundMasks().applies(scores(form, -1e4))


def test_normalizations_are_found_whole():
    """From the mean to the shift; the layer that follows and a plain product are not part of it."""
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[-1], name="mean"),
        node("Sub", ["x", "mean"], ["c"], name="centre"),
        node("Pow", ["c", "two"], ["q"], name="square"),
        node("ReduceMean", ["q"], ["v"], axes=[-1], name="variance"),
        node("Add", ["v", "eps"], ["e"], name="eps"),
        node("Sqrt", ["e"], ["r"], name="root"),
        node("Div", ["c", "r"], ["n"], name="divide"),
        node("Mul", ["n", "g"], ["s"], name="factor"),
        node("Add", ["s", "b"], ["t"], name="shift"),
        node("MatMul", ["t", "w"], ["z"], name="dense"),
        node("Mul", ["z", "z"], ["y"], name="own"),
    ]
    constants = {name: np.ones(4, np.float32) for name in "gb"}
    constants |= {"two": np.float32(2), "eps": np.float32(1e-5), "w": np.eye(4, dtype=np.float32)}
    graph = Graph(models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, constants))
    found = normalizing(*steps_of(graph))
    assert {graph.nodes[index].name for index in found} == {one.name for one in nodes} - {"dense", "own"}


def test_divisions_by_answers_stay_float():
    """A division by a constant is a product; a small divisor that comes from the inputs is 0 in 8 bits."""
    steps = [Step("DIV", ("x", "c"), ("a",)), Step("MUL", ("a", "b"), ("d",)), Step("DIV", ("a", "d"), ("y",))]
    assert dividing(steps, {"c": (0.5, 2.0)}) == {2}
