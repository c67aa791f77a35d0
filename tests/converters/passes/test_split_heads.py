"""Outputs whose parts are too different for one 8-bit scale: recognized, and split at their Concat."""

import numpy as np
import pytest
from onnx import helper

from converters.calibration.calibrate import calibrate
from converters.calibration.joins import alike, apart
from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.passes import run_pass
from converters.passes.split_heads import Head, SplitHeads, join
from edgekit.errors import ConversionError
from tests.simulators import headed_models
from tests.simulators.models import model_of


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=f"{kind}-{output}", **attributes)


def joined(*behind, shape=(4, 12), ratio=320.0, axis=1, batch="batch", **outputs):
    """x (N, 2, 6) and a copy with a range `ratio` times as wide are joined to `y`; `behind` adds operators."""
    weights = {
        "wide": np.float32(ratio),
        "columns": np.array([0, 4, 2, 3], np.int64),
        "flat": np.array([0, -1], np.int64),
        "mixed": np.array([0, 3, 8], np.int64),
        "w": np.random.default_rng(0).normal(0, 1, (6, 2)).astype(np.float32),
        "fixed": np.full((1, 2, 6), 7, np.float32),
    }
    nodes = [
        node("Tanh", ["x"], "small"),
        node("Mul", ["small", "wide"], "large"),
        node("Concat", ["small", "large"], "joined" if behind else "y", axis=axis),
    ]
    made = {"y": [batch, *shape], **outputs}
    return Graph(model_of([*nodes, *behind], {"x": [batch, 2, 6]}, made, weights))


def split(graph):
    """The split graph, its heads and the modified flag; outputs are compared with the original."""
    rows = 8 if graph.free_batch else 1
    x = np.random.default_rng(3).normal(0, 1, (rows, *graph.inputs[0].shape[1:])).astype(np.float32)
    inputs = {graph.inputs[0].name: x}
    step = SplitHeads(calibrate(graph, Samples(inputs)).ranges())
    heads, result = step.heads(graph), run_pass(step, graph)
    expected, found = graph.run(inputs), join(heads, result.graph.run(inputs))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert step.applies(graph) == result.modified == bool(heads)
    assert not step.applies(result.graph)
    return result.graph, heads, result.modified


def shapes(graph):
    return {spec.name: spec.shape for spec in graph.outputs}


@pytest.mark.parametrize("batch", ["batch", 1])
def test_boxes_and_scores_come_apart(batch):
    """The parts replace the output, the batch stays free, and the Concat is removed."""
    graph, heads, _ = split(joined(shape=(4, 6), batch=batch))
    rows = None if batch == "batch" else 1
    assert heads == (Head("y", 1, ("y.0", "y.1")),)
    assert shapes(graph) == {"y.0": (rows, 2, 6), "y.1": (rows, 2, 6)}
    assert "Concat" not in graph.operators


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize(
    ("behind", "shape", "axis", "sizes"),
    [
        ([node("Transpose", ["joined"], "y", perm=[0, 2, 1])], (6, 4), 2, [2, 2]),
        ([node("Reshape", ["joined", "columns"], "y")], (4, 2, 3), 1, [2, 2]),
        ([node("Reshape", ["joined", "flat"], "y")], (24,), 1, [12, 12]),
        ([node("Flatten", ["joined"], "y", axis=1)], (24,), 1, [12, 12]),
        (
            [node("Transpose", ["joined"], "t", perm=[0, 2, 1]), node("Identity", ["t"], "y")],
            (6, 4),
            2,
            [2, 2],
        ),
    ],
    ids=["transpose", "reshape", "flat", "flatten", "two"],
)
def test_what_moves_values_behind_the_join_is_done_to_each_part(behind, shape, axis, sizes, batch):
    """The axis of the parts moves with the operators."""
    graph, [head], _ = split(joined(*behind, shape=shape, batch=batch))
    assert head.axis == axis
    assert [found[axis] for found in shapes(graph).values()] == sizes


WHOLE = {
    "alike": joined(shape=(4, 6), ratio=3.9),
    "one part always 0": joined(shape=(4, 6), ratio=0.0),
    "parts broken up": joined(node("Reshape", ["joined", "mixed"], "y"), shape=(3, 8)),
    "values changed": joined(node("Sigmoid", ["joined"], "y"), shape=(4, 6)),
    "joined for others too": joined(
        node("Identity", ["joined"], "y"), node("Neg", ["joined"], "z"), shape=(4, 6), z=["batch", 4, 6]
    ),
    "a part is an output": joined(shape=(4, 6), large=["batch", 2, 6]),
    "a part is joined elsewhere": joined(
        node("Identity", ["joined"], "y"),
        node("Concat", ["small", "small"], "z", axis=2),
        shape=(4, 6),
        z=["batch", 2, 12],
    ),
    "a part is constant": joined(
        node("Identity", ["small"], "z"), node("Concat", ["joined", "fixed"], "y", axis=1), shape=(6, 6), batch=1
    ),
}


@pytest.mark.parametrize("why", WHOLE)
def test_what_need_not_or_cannot_simply_come_apart_stays_whole(why):
    """The graph is returned unchanged, and `modified` is False."""
    found, heads, modified = split(WHOLE[why])
    assert (heads, modified) == ((), False)
    assert found is WHOLE[why]


def test_neighbours_that_are_alike_stay_joined():
    """Four box numbers and two scores become two parts, not six; nested Concats count as one."""
    more = [
        node("Neg", ["small"], "less"),
        node("Neg", ["large"], "far"),
        node("Concat", ["less", "joined"], "all", axis=1),
        node("Concat", ["all", "far"], "y", axis=-2),
    ]
    graph, [head], _ = split(joined(*more, shape=(8, 6)))
    assert list(shapes(graph).values()) == [(None, 4, 6), (None, 4, 6)]
    assert head.axis == 1
    assert graph.operators["Concat"] == 2


def test_levels_of_a_detector_are_joined_by_kind():
    """Boxes of all levels are one part and scores of all levels another."""
    graph, [head], _ = split(headed_models.levels())
    assert head == Head("detections", 2, ("detections.0", "detections.1"))
    assert shapes(graph) == {"detections.0": (None, 40, 4), "detections.1": (None, 40, 2)}


def test_other_outputs_keep_their_places():
    """The parts are at the position of their output."""
    graph = joined(node("Exp", ["x"], "z"), node("Identity", ["joined"], "y"), shape=(4, 6), z=["batch", 2, 6])
    assert list(shapes(split(graph)[0])) == ["y.0", "y.1", "z"]


def test_a_step_that_gives_other_outputs_than_it_says_is_refused():
    """It is refused like a pass that changes outputs without announcing them."""

    class Liar(SplitHeads):
        def outputs(self, graph):
            return graph.outputs

    graph = joined(shape=(4, 6))
    ranges = calibrate(graph, Samples({"x": np.ones((1, 2, 6), np.float32)})).ranges()
    with pytest.raises(ConversionError, match="changed the interface"):
        run_pass(Liar(ranges), graph)


def test_unknown_ranges_split_nothing():
    """An output with a part that was not calibrated is not split."""
    assert not SplitHeads({}).applies(joined(shape=(4, 6)))


def test_four_times_as_wide_is_the_most_that_shares_a_scale():
    """At ratio 4 the narrow part keeps 64 of 255 steps; a part that is always 0 needs none."""
    assert alike([])
    assert alike([0.0, 5.0])
    assert alike([1.0, 3.9, 2.0])
    assert not alike([1.0, 4.0])


@pytest.mark.parametrize(
    ("behind", "left"),
    [
        ([], {"Concat-y"}),
        ([node("Transpose", ["joined"], "y", perm=[0, 2, 1])], {"Concat-joined", "Transpose-y"}),
        ([node("Relu", ["joined"], "r"), node("Softmax", ["r"], "y")], {"Concat-joined", "Relu-r", "Softmax-y"}),
        ([node("MatMul", ["joined", "w"], "y")], set()),
        ([node("Relu", ["joined"], "r"), node("MatMul", ["r", "w"], "y")], set()),
        ([node("MatMul", ["joined", "w"], "m"), node("Concat", ["m", "m"], "y", axis=1)], set()),
        ([node("Concat", ["joined", "joined"], "y", axis=2)], {"Concat-joined", "Concat-y"}),
    ],
    ids=["output", "moved", "read in float", "layer", "relu and layer", "behind a layer", "joined again"],
)
def test_only_joins_that_layers_alone_read_are_quantized(behind, left):
    """An 8-bit layer needs one scale; other readers can use the parts separately."""
    shape = (4, 12) if behind and behind[-1].op_type == "Concat" else (4, 6)
    graph = joined(*behind, shape=shape)
    ranges = {"small": (-1.0, 1.0), "large": (-320.0, 320.0), "m": (-9.0, 9.0)}
    assert apart(graph, ranges) == left
    assert apart(graph, {**ranges, "large": (-2.0, 2.0)}) == set()
