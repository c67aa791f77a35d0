import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.data.input_ranges import input_ranges
from converters.data.random_inputs import plausible_samples, random_samples
from converters.frontends.onnx import canonical
from edgekit.errors import ConversionError
from tests.simulators import models


def graph_of(nodes, inputs, outputs, weights=None, **types):
    """A graph whose inputs have the given element types; float32 where none is given."""
    model = models.model_of(nodes, inputs, outputs, weights)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = types.get(value.name, TensorProto.FLOAT)
    return canonical(model, "test")


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def drawn(graph, rows=64):
    """Inputs of plausible samples that the graph itself judges."""
    found = plausible_samples(graph, graph.run, rows, 1)
    assert found.notes == ()
    assert all(not spec.faults(found.samples.inputs[spec.name]) for spec in graph.inputs)
    return found.samples.inputs


def test_token_ids_cover_the_rows_of_the_table():
    """Ids that reach a table through Cast, Reshape and Add are within its rows, and more than 0 and 1."""
    nodes = [
        node("Cast", ["ids"], "wide", to=TensorProto.INT64),
        node("Add", ["wide", "two"], "moved"),
        node("Gather", ["table", "moved"], "y"),
    ]
    weights = {"two": np.int64(2), "table": np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)}
    graph = graph_of(nodes, {"ids": ["batch", 7]}, {"y": ["batch", 7, 3]}, weights, ids=TensorProto.INT32)
    ids = drawn(graph)["ids"]
    assert ids.min() <= 0  # the table's row 2 or before is the id 0 or less
    assert ids.max() == 47
    assert len(np.unique(ids)) > 30


def test_ids_in_a_float_input_are_whole():
    """A float input that is cast to an index holds whole numbers within the table."""
    nodes = [node("Cast", ["x"], "ids", to=TensorProto.INT64), node("Gather", ["table", "ids"], "y")]
    weights = {"table": np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)}
    x = drawn(graph_of(nodes, {"x": ["batch", 5]}, {"y": ["batch", 5, 3]}, weights))["x"]
    assert x.dtype == np.float32
    assert (x == np.rint(x)).all()
    assert (x.min(), x.max()) == (0, 19)


def test_negative_indices_are_drawn_where_legal():
    """An index into computed values may count from the end; one into a trained table never does."""
    nodes = [node("Relu", ["x"], "r"), node("Gather", ["r", "i"], "y", axis=1)]
    inputs, outputs = {"x": ["batch", 9], "i": ["n"]}, {"y": ["batch", "n"]}
    model = models.model_of(nodes, inputs, outputs)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "batch"
    from converters.graph.graph import Graph

    ranges = input_ranges(Graph(model), negative_indices=True)
    assert (ranges["i"].low, ranges["i"].high) == (-9, 8)
    assert input_ranges(Graph(model))["i"].low == 0


@pytest.mark.parametrize(
    ("nodes", "low", "high"),
    [
        ([node("Div", ["x", "c"], "y")], 0, 255),
        ([node("Sub", ["x", "mean"], "m"), node("Mul", ["m", "inverse"], "y")], 0, 255),
        ([node("Sub", ["x", "half"], "m"), node("Div", ["m", "half"], "y")], 0, 1),
    ],
    ids=["divided by 255", "mean of pixels", "mean of shares"],
)
def test_normalization_shows_the_range_of_pixels(nodes, low, high):
    """A first Sub, Div or Mul shows whether pixels are 0 to 255 or 0 to 1."""
    weights = {
        "c": np.float32(255),
        "mean": np.float32(127.5),
        "inverse": np.float32(1 / 127.5),
        "half": np.float32(0.5),
    }
    nodes = [*nodes, node("Relu", ["y"], "z")]
    used = {name: value for name, value in weights.items() if any(name in one.input for one in nodes)}
    x = drawn(graph_of(nodes, {"x": ["batch", 3, 8, 8]}, {"z": ["batch", 3, 8, 8]}, used))["x"]
    assert low <= x.min() < low + 0.1 * high
    assert 0.9 * high < x.max() <= high


def test_bytes_have_their_whole_range():
    """A uint8 image has values from 0 to 255."""
    nodes = [node("Cast", ["x"], "f", to=TensorProto.FLOAT), node("Relu", ["f"], "y")]
    x = drawn(graph_of(nodes, {"x": ["batch", 8, 8, 3]}, {"y": ["batch", 8, 8, 3]}, x=TensorProto.UINT8))["x"]
    assert (x.min(), x.max()) == (0, 255)


def test_masks_and_lengths_are_consistent():
    """A mask is ones and then zeros; the lengths of the same rows are the numbers of ones."""
    nodes = [
        node("Cast", ["attention_mask"], "m", to=TensorProto.FLOAT),
        node("Mul", ["m", "x"], "masked"),
        node("Cast", ["x_lengths"], "l", to=TensorProto.FLOAT),
        node("Unsqueeze", ["l", "one"], "column"),
        node("Mul", ["masked", "column"], "y"),
    ]
    shapes = {"x": ["batch", 12], "attention_mask": ["batch", 12], "x_lengths": ["batch"]}
    types = {"attention_mask": TensorProto.INT64, "x_lengths": TensorProto.INT64}
    inputs = drawn(graph_of(nodes, shapes, {"y": ["batch", 12]}, {"one": np.array([1])}, **types))
    mask, lengths = inputs["attention_mask"], inputs["x_lengths"]
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(mask, np.sort(mask, axis=1)[:, ::-1])
    np.testing.assert_array_equal(mask.sum(axis=1), lengths)
    assert lengths.max() == 12
    assert len(set(lengths)) > 3


def test_additive_mask_without_a_name_is_found():
    """(1 - input) times a large number is how attention masks are used."""
    nodes = [
        node("Cast", ["a"], "f", to=TensorProto.FLOAT),
        node("Sub", ["one", "f"], "off"),
        node("Mul", ["off", "large"], "bias"),
        node("Add", ["bias", "x"], "s"),
        node("Softmax", ["s"], "y"),
    ]
    weights = {"one": np.float32(1), "large": np.float32(-10000)}
    graph = graph_of(nodes, {"x": ["batch", 6], "a": ["batch", 6]}, {"y": ["batch", 6]}, weights, a=TensorProto.INT64)
    assert input_ranges(graph)["a"].kind == "mask"


def test_scalar_that_is_compared_takes_the_constants():
    """A sample rate that is compared with 16000 is 16000."""
    nodes = [
        node("Equal", ["rate", "wanted"], "is"),
        node("Cast", ["is"], "f", to=TensorProto.FLOAT),
        node("Unsqueeze", ["f", "one"], "column"),
        node("Mul", ["x", "column"], "y"),
    ]
    weights = {"wanted": np.int64(16000), "one": np.array([1])}
    graph = graph_of(
        nodes, {"x": ["batch", 3], "rate": ["batch"]}, {"y": ["batch", 3]}, weights, rate=TensorProto.INT64
    )
    assert set(drawn(graph)["rate"]) == {16000}


def test_undefined_answers_lead_to_another_draw_that_is_told():
    """The square root of negative inputs is undefined; inputs from 0 to 1 are drawn, and a note says so."""
    graph = graph_of([node("Sqrt", ["x"], "y")], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    found = plausible_samples(graph, graph.run, 16, 1)
    assert 0 <= found.samples.inputs["x"].min() <= found.samples.inputs["x"].max() <= 1
    assert "output y holds NaN" in found.notes[0]
    assert "--data" in found.notes[0]


def test_constant_answers_are_told():
    """A network whose answers do not depend on the input is not proven by random inputs."""
    nodes = [node("Mul", ["x", "zero"], "y")]
    graph = graph_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, {"zero": np.zeros(4, np.float32)})
    [note] = plausible_samples(graph, lambda inputs: {"y": np.zeros((len(inputs["x"]), 4))}, 16, 1).notes
    assert "y is the same for every input" in note


def test_model_that_never_runs_is_refused_with_its_first_error():
    """Where every draw fails, the error says that real samples are needed."""
    graph = graph_of([node("Relu", ["x"], "y")], {"x": ["batch", 4]}, {"y": ["batch", 4]})

    def fails(inputs):
        raise ConversionError("row 7 is not in the table")

    with pytest.raises(ConversionError, match="row 7 is not in the table") as caught:
        plausible_samples(graph, fails, 16, 1)
    assert "--data" in caught.value.advice

    def says(inputs):
        raise ConversionError("the size depends on values", advice="Fix it with --fix NAME=VALUE.")

    with pytest.raises(ConversionError) as caught:
        plausible_samples(graph, says, 16, 1)
    assert caught.value.advice.startswith("Fix it with --fix")


def test_random_samples_fit_and_repeat():
    """The same seed gives the same samples."""
    graph = graph_of([node("Relu", ["x"], "y")], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    one, two, other = (random_samples(graph, 4, seed).inputs["x"] for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_divisors_of_whole_numbers_are_not_0():
    """An input that divides begins at 1; where it divides behind other operators, another draw is taken."""
    kinds = dict.fromkeys("abcy", TensorProto.INT64)
    nodes = [node("Div", ["a", "b"], "q"), node("Mul", ["c", "c"], "cc"), node("Mod", ["q", "cc"], "y")]
    sizes = {name: ["batch", 4] for name in "abc"}
    graph = graph_of(nodes, sizes, {"y": ["batch", 4]}, **kinds)
    assert input_ranges(graph)["b"].low == 1
    assert input_ranges(graph)["a"].low == 0
    inputs = plausible_samples(graph, graph.run, 64, 1).samples.inputs
    assert inputs["b"].min() == inputs["c"].min() == 1
