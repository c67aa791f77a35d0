"""Models whose batch is not the first axis of everything, with free axes, scalars, fixed and unread inputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.data.samples import data_arrays, load_samples
from converters.frontends.onnx import load_onnx, onnx_answers
from converters.graph.stated import DataArray, Stated, parse_dim, parse_fixed, parse_shape
from edgekit.errors import ConversionError, DataError, ModelFormatError, SettingsError, UnsupportedOpError
from tests.simulators import models

RNG = np.random.default_rng(0)
NODE = helper.make_node


def weights(*shape):
    return RNG.normal(0, 0.4, shape).astype(np.float32)


def saved(tmp_path, nodes, inputs, outputs, constants=None, kinds=None):
    """The path of a model; `kinds` gives element types of inputs and outputs that are not float."""
    model = models.model_of(nodes, inputs, outputs, constants or {})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = (kinds or {}).get(value.name, TensorProto.FLOAT)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    return path


def shapes(specs):
    return {spec.name: spec.shape for spec in specs}


def require_equal(path, graph, rows=5):
    """The canonical graph answers as the file itself does."""
    inputs = {
        s.name: RNG.normal(0, 1, (rows, *s.shape[1:])).astype(s.dtype.numpy)
        if s.dtype.numpy.kind == "f"
        else RNG.integers(0, 2, (rows, *s.shape[1:])).astype(s.dtype.numpy)
        for s in graph.sample_inputs
    }
    expected, answers = onnx_answers(path, inputs, graph=graph), graph.run(inputs)
    assert expected.keys() == answers.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(answers[name], value, atol=1e-5, err_msg=name)
        assert len(value) == rows


def test_recurrent_state_has_its_batch_in_the_middle(tmp_path):
    """[N, C] with a state [2, N, H]: both outputs keep their layout, and the canonical graph has the batch first."""
    nodes = [
        NODE("Split", ["h"], ["h0", "h1"], axis=0),
        NODE("Squeeze", ["h0", "zero"], ["s0"]),
        NODE("Squeeze", ["h1", "zero"], ["s1"]),
        NODE("MatMul", ["x", "w"], ["xw"]),
        NODE("Add", ["xw", "s0"], ["a"]),
        NODE("Tanh", ["a"], ["t"]),
        NODE("Add", ["t", "s1"], ["y"]),
        NODE("Unsqueeze", ["t", "zero"], ["n0"]),
        NODE("Unsqueeze", ["y", "zero"], ["n1"]),
        NODE("Concat", ["n0", "n1"], ["hn"], axis=0),
    ]
    constants = {"zero": np.array([0]), "w": weights(3, 4)}
    path = saved(tmp_path, nodes, {"x": ["?", 3], "h": [2, "?", 4]}, {"y": ["?", 4], "hn": ["?", "?", "?"]}, constants)
    graph = load_onnx(path)
    assert shapes(graph.logical_inputs) == {"x": (None, 3), "h": (2, None, 4)}
    assert shapes(graph.logical_outputs) == {"y": (None, 4), "hn": (2, None, 4)}
    assert shapes(graph.inputs) == {"x": (None, 3), "h": (None, 2, 4)}
    assert graph.free_batch
    require_equal(path, graph)


def test_output_of_text_recognition_has_time_first(tmp_path):
    """(T, N, C) outputs are found by the axis that doubles, whatever their symbols say."""
    nodes = [NODE("Transpose", ["x"], ["t"], perm=[2, 0, 1]), NODE("MatMul", ["t", "w"], ["y"])]
    path = saved(tmp_path, nodes, {"x": ["n", 3, 7]}, {"y": ["a", "b", 5]}, {"w": weights(3, 5)})
    graph = load_onnx(path)
    assert shapes(graph.logical_outputs) == {"y": (7, None, 5)}
    assert shapes(graph.outputs) == {"y": (None, 7, 5)}
    require_equal(path, graph)


def test_time_axis_of_a_recurrent_layer_is_no_batch(tmp_path):
    """A free first axis whose entries depend on each other is refused without a size, and kept with one."""
    nodes = [
        NODE("Unsqueeze", ["x", "one"], ["xu"]),
        NODE("GRU", ["xu", "w", "r"], ["y4"], hidden_size=4),
        NODE("Squeeze", ["y4", "both"], ["y"]),
    ]
    constants = {"one": np.array([1]), "both": np.array([1, 2]), "w": weights(1, 12, 3), "r": weights(1, 12, 4)}
    path = saved(tmp_path, nodes, {"x": ["steps", 3]}, {"y": ["steps", 4]}, constants)
    with pytest.raises(ModelFormatError, match="steps") as caught:
        load_onnx(path)
    assert "--dim steps=" in caught.value.advice
    graph = load_onnx(path, Stated(dims={"steps": 6}))
    assert shapes(graph.logical_inputs) == {"x": (6, 3)}
    assert shapes(graph.sample_inputs) == {"x": (None, 6, 3)}
    assert not graph.interface.batched
    require_equal(path, graph)


def test_model_without_a_batch_takes_one_sample_a_call(tmp_path):
    """Fixed first axes other than 1 are no batch; the canonical graph has one more axis of 1."""
    nodes = [NODE("MatMul", ["x", "w"], ["m"]), NODE("Add", ["m", "b"], ["y"])]
    path = saved(tmp_path, nodes, {"x": [4, 3], "b": []}, {"y": [4, 2]}, {"w": weights(3, 2)})
    graph = load_onnx(path)
    assert shapes(graph.logical_inputs) == {"x": (4, 3), "b": ()}
    assert shapes(graph.inputs) == {"x": (1, 4, 3), "b": (1,)}
    require_equal(path, graph)


def test_scalar_beside_a_batch_is_run_row_by_row(tmp_path):
    """A scalar that is not fixed may differ between samples, so the graph takes one row."""
    nodes = [NODE("Mul", ["x", "gain"], ["y"])]
    path = saved(tmp_path, nodes, {"x": ["n", 3], "gain": []}, {"y": ["n", 3]})
    graph = load_onnx(path)
    assert shapes(graph.logical_inputs) == {"x": (None, 3), "gain": ()}
    assert not graph.free_batch
    require_equal(path, graph)


def test_batch_baked_into_a_reshape_is_taken_with_one_row(tmp_path):
    """A Reshape to [1, 6] accepts no second row: clients still have a free batch, and rows run one at a time."""
    nodes = [NODE("Reshape", ["x", "to"], ["r"]), NODE("MatMul", ["r", "w"], ["y"])]
    constants = {"to": np.array([1, 6]), "w": weights(6, 2)}
    path = saved(tmp_path, nodes, {"x": ["n", 2, 3]}, {"y": ["n", 2]}, constants)
    graph = load_onnx(path)
    assert shapes(graph.logical_inputs) == {"x": (None, 2, 3)}
    assert not graph.free_batch
    assert any("one at a time" in note for note in graph.interface.notes)
    require_equal(path, graph)


def test_fixed_input_keeps_its_place_and_the_graph_loses_it(tmp_path):
    """--fix makes the input a constant; data may repeat the value, and another value is an error."""
    nodes = [NODE("Cast", ["sr"], ["f"], to=TensorProto.FLOAT), NODE("Mul", ["x", "f"], ["y"])]
    kinds = {"sr": TensorProto.INT64}
    path = saved(tmp_path, nodes, {"sr": [], "x": ["n", 3]}, {"y": ["n", 3]}, kinds=kinds)
    graph = load_onnx(path, Stated(fixed={"sr": 3}))
    assert shapes(graph.logical_inputs) == {"sr": (), "x": (None, 3)}
    assert shapes(graph.inputs) == {"x": (None, 3)}
    assert [one.value for one in graph.interface.inputs] == [3, None]
    require_equal(path, graph)
    data = tmp_path / "d.npz"
    np.savez(data, x=np.ones((4, 3), np.float32), sr=np.int64(3))
    assert data_arrays(data)["sr"] == DataArray((), 3)
    assert set(load_samples(data, graph.sample_inputs, interface=graph.interface).inputs) == {"x"}
    assert shapes(load_onnx(path, Stated(data=data_arrays(data))).inputs) == {"x": (None, 3)}
    np.savez(data, x=np.ones((4, 3), np.float32), sr=np.int64(5))
    with pytest.raises(DataError, match="sr holds 5, and the model is fixed to 3"):
        load_samples(data, graph.sample_inputs, interface=graph.interface)


def test_fixed_value_must_fit_the_type(tmp_path):
    """A fraction does not fit an integer input, and an unknown input is named."""
    nodes = [NODE("Cast", ["sr"], ["f"], to=TensorProto.FLOAT), NODE("Mul", ["x", "f"], ["y"])]
    path = saved(tmp_path, nodes, {"sr": [], "x": ["n", 3]}, {"y": ["n", 3]}, kinds={"sr": TensorProto.INT64})
    with pytest.raises(SettingsError, match="int64 cannot hold"):
        load_onnx(path, Stated(fixed={"sr": 0.5}))
    with pytest.raises(SettingsError, match=r"rate.*it has sr, x"):
        load_onnx(path, Stated(fixed={"rate": 3}))


def test_unread_input_stays_in_the_interface(tmp_path):
    """An input that no node reads is in the interface and not in the graph."""
    path = saved(tmp_path, [NODE("Relu", ["x"], ["y"])], {"im_shape": ["n", 2], "x": ["n", 3]}, {"y": ["n", 3]})
    graph = load_onnx(path)
    assert shapes(graph.logical_inputs) == {"im_shape": (None, 2), "x": (None, 3)}
    assert shapes(graph.inputs) == {"x": (None, 3)}
    require_equal(path, graph)


def detector(tmp_path):
    nodes = [NODE("Conv", ["x", "w"], ["c"], strides=[2, 2]), NODE("GlobalAveragePool", ["c"], ["p"])]
    outputs = {"c": ["n", 2, "floor((height - 3)/2) + 1", "z"], "p": ["n", 2, 1, 1]}
    return saved(tmp_path, nodes, {"x": ["n", 3, "height", "?"]}, outputs, {"w": weights(2, 3, 3, 3)})


def test_free_axes_are_refused_with_flags_to_paste(tmp_path):
    """The error lists each free axis, and its flags are accepted as they are."""
    path = detector(tmp_path)
    with pytest.raises(ModelFormatError, match=r"2 \(height\), 3; expected") as caught:
        load_onnx(path)
    flag = caught.value.advice.split("--input-shape ")[1].split(";")[0].split(" ")[0]
    name, sizes = parse_shape(flag)
    assert shapes(load_onnx(path, Stated(shapes={name: sizes})).logical_inputs) == {"x": (None, *sizes[1:])}


@pytest.mark.parametrize(
    "stated",
    [
        Stated(shapes={"x": (1, 3, 32, 64)}),
        Stated(dims={"height": 32}, data={"x": DataArray((9, 3, 32, 64))}),
        Stated(data={"x": DataArray((9, 3, 32, 64))}),
    ],
)
def test_free_axes_are_settled_and_outputs_follow(tmp_path, stated):
    """Sizes come from the flags or the data; output axes with arithmetic in their symbols follow."""
    graph = load_onnx(detector(tmp_path), stated)
    assert shapes(graph.logical_inputs) == {"x": (None, 3, 32, 64)}
    assert shapes(graph.logical_outputs) == {"c": (None, 2, 15, 31), "p": (None, 2, 1, 1)}
    assert graph.free_batch


def test_stated_shape_must_fit(tmp_path):
    """A stated size that contradicts the model is refused, with both."""
    with pytest.raises(SettingsError, match=r"\[1, 4, 32, 64\]; the model has \[n, 3, height, \?\]"):
        load_onnx(detector(tmp_path), Stated(shapes={"x": (1, 4, 32, 64)}))
    with pytest.raises(SettingsError, match="the free axes with a name are height, n"):
        load_onnx(detector(tmp_path), Stated(dims={"width": 4}))


def test_shared_symbol_is_likelier_than_the_first_axis(tmp_path):
    """In (T, N, C) with a state (1, N, H), N is the batch and T needs a size."""
    nodes = [
        NODE("GRU", ["x", "w", "r", "", "", "h"], ["y4", "hn"], hidden_size=4),
        NODE("Squeeze", ["y4", "one"], ["y"]),
    ]
    constants = {"one": np.array([1]), "w": weights(1, 12, 3), "r": weights(1, 12, 4)}
    inputs, outputs = {"x": ["t", "k", 3], "h": [1, "k", 4]}, {"y": ["t", "k", 4], "hn": [1, "k", 4]}
    path = saved(tmp_path, nodes, inputs, outputs, constants)
    graph = load_onnx(path, Stated(dims={"t": 5}))
    assert shapes(graph.logical_inputs) == {"x": (5, None, 3), "h": (1, None, 4)}
    require_equal(path, graph)


def test_texts_of_the_options_are_parsed():
    """Names may contain equals signs and colons; other forms are refused."""
    assert parse_shape("a:0=1,3,320,320") == ("a:0", (1, 3, 320, 320))
    assert parse_dim("height=320") == ("height", 320)
    assert [parse_fixed(text) for text in ("sr=16000", "p=0.5", "f=true")] == [("sr", 16000), ("p", 0.5), ("f", True)]
    for parse, text in (
        (parse_shape, "x=1,a"),
        (parse_shape, "x=1,\u00b2"),
        (parse_dim, "h=0"),
        (parse_dim, "h=\u00b2"),
        (parse_dim, "h=99999999999999999999"),
        (parse_fixed, "sr=many"),
        (parse_fixed, "x=nan"),
    ):
        with pytest.raises(SettingsError, match="does not have the form"):
            parse(text)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (Stated(shapes={"x": (1, 3, 2**20, 2**20)}), "the most is 268435456"),
        (Stated(fixed={"x": 10**30}, shapes={"x": (1, 3, 8, 8)}), "cannot hold"),
    ],
)
def test_values_beyond_all_memory_and_types_are_refused(tmp_path, stated, message):
    """One digit too many is refused before an array of that size is made."""
    kinds = {"x": TensorProto.INT64, "y": TensorProto.INT64}
    path = saved(tmp_path, [NODE("Abs", ["x"], ["y"])], {"x": [1, 3, "h", "w"]}, {"y": [1, 3, "h", "w"]}, kinds=kinds)
    with pytest.raises(SettingsError, match=message):
        load_onnx(path, stated)


def test_output_whose_size_a_value_decides_is_told(tmp_path):
    """An input gives the size of the output; it must be fixed, and a trial with other values says so."""
    nodes = [NODE("ConstantOfShape", ["sizes"], ["y"])]
    path = saved(tmp_path, nodes, {"sizes": [2]}, {"y": [None, None]}, kinds={"sizes": TensorProto.INT64})
    graph = load_onnx(path)
    with pytest.raises(ConversionError, match="the size of output y depends on the values") as caught:
        onnx_answers(path, {"sizes": np.array([[3, 4]])}, graph=graph)
    assert "--fix" in caught.value.advice


def test_borders_cancel_with_the_axes_that_a_model_adds_itself(tmp_path):
    """An image without a batch, to which the model adds one, enters the convolution without a Squeeze."""
    nodes = [
        NODE("Unsqueeze", ["x", "zero"], ["xu"]),
        NODE("Conv", ["xu", "k"], ["c"]),
        NODE("Relu", ["c"], ["r"]),
        NODE("Squeeze", ["r", "zero"], ["y"]),
    ]
    path = saved(tmp_path, nodes, {"x": [3, 8, 8]}, {"y": [2, 6, 6]}, {"zero": np.array([0]), "k": weights(2, 3, 3, 3)})
    graph = load_onnx(path)
    assert list(graph.operators) == ["Conv", "Relu"]
    assert shapes(graph.logical_outputs) == {"y": (2, 6, 6)}
    require_equal(path, graph)


@pytest.mark.parametrize(("order", "left"), [([1, 0, 2], 0), ([2, 1, 0], 1)])
def test_transpositions_at_the_borders_are_merged(tmp_path, order, left):
    """The model's own transposition and that of the border cancel, or become one."""
    nodes = [NODE("Relu", ["x"], ["r"]), NODE("Transpose", ["r"], ["y"], perm=order)]
    path = saved(tmp_path, nodes, {"x": ["n", 3, 7]}, {"y": ["a", "b", "c"]})
    graph = load_onnx(path)
    assert graph.operators.get("Transpose", 0) == left
    require_equal(path, graph)
    inner = [NODE("Transpose", ["x"], ["t"], perm=list(np.argsort(order))), NODE("Relu", ["t"], ["y"])]
    path = saved(tmp_path, inner, {"x": [3, "batch", 7] if left == 0 else [3, 7, "batch"]}, {"y": ["a", "b", "c"]})
    graph = load_onnx(path)
    assert graph.operators.get("Transpose", 0) == left
    require_equal(path, graph)


def test_average_over_time_is_no_batch(tmp_path):
    """(T, C) to (1, C): the output keeps its size with two rows, and reads both, so T needs a size."""
    nodes = [NODE("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), NODE("MatMul", ["m", "w"], ["y"])]
    path = saved(tmp_path, nodes, {"x": ["?", 3]}, {"y": [1, 2]}, {"w": weights(3, 2)})
    with pytest.raises(ModelFormatError, match="depends on the others"):
        load_onnx(path)
    graph = load_onnx(path, Stated(shapes={"x": (9, 3)}))
    assert shapes(graph.logical_inputs) == {"x": (9, 3)}
    assert shapes(graph.logical_outputs) == {"y": (1, 2)}
    assert shapes(graph.sample_outputs) == {"y": (None, 2)}
    require_equal(path, graph)


def test_rows_that_are_compared_with_each_other_make_a_model_without_a_batch(tmp_path):
    """Scores of every text with every picture: each call takes one of each, and data have their usual form."""
    nodes = [NODE("Transpose", ["picture"], ["t"], perm=[1, 0]), NODE("MatMul", ["text", "t"], ["scores"])]
    inputs = {"text": ["text_batch", 4], "picture": ["image_batch", 4]}
    path = saved(tmp_path, nodes, inputs, {"scores": ["text_batch", "image_batch"]})
    graph = load_onnx(path)
    assert shapes(graph.logical_inputs) == {"text": (1, 4), "picture": (1, 4)}
    assert shapes(graph.sample_inputs) == {"text": (None, 4), "picture": (None, 4)}
    require_equal(path, graph)


def test_free_sizes_of_an_image_are_no_batch(tmp_path):
    """[1, 3, h, w] and [3, ?, ?]: every free axis needs a size, from the data too."""
    path = saved(tmp_path, [NODE("Relu", ["x"], ["y"])], {"x": [1, 3, "h", "w"]}, {"y": [1, 3, "h", "w"]})
    with pytest.raises(ModelFormatError, match=r"2 \(h\), 3 \(w\)"):
        load_onnx(path)
    graph = load_onnx(path, Stated(data={"x": DataArray((9, 3, 8, 6))}))
    assert shapes(graph.logical_inputs) == {"x": (None, 3, 8, 6)}
    path = saved(tmp_path, [NODE("Relu", ["x"], ["y"])], {"x": [3, "?", "?"]}, {"y": [3, "?", "?"]})
    with pytest.raises(ModelFormatError, match="free axes 1, 2;"):
        load_onnx(path)
    graph = load_onnx(path, Stated(data={"x": DataArray((9, 3, 8, 6))}))
    assert shapes(graph.logical_inputs) == {"x": (3, 8, 6)}
    assert shapes(graph.sample_inputs) == {"x": (None, 3, 8, 6)}


def test_sizes_with_arithmetic_follow_from_their_symbols(tmp_path):
    """A mask of past + 1 entries gets its size from --dim past, and the error proposes only past."""
    nodes = [
        NODE("ReduceSum", ["mask", "one"], ["m"]),
        NODE("Add", ["x", "m"], ["s"]),
        NODE("ReduceSum", ["cache", "one"], ["c"]),
        NODE("Add", ["s", "c"], ["y"]),
    ]
    inputs = {"x": ["batch", 1], "cache": ["batch", "past"], "mask": ["batch", "past + 1"]}
    path = saved(tmp_path, nodes, inputs, {"y": ["batch", 1]}, {"one": np.array([1])})
    with pytest.raises(ModelFormatError) as caught:
        load_onnx(path)
    assert caught.value.advice.count("--") == 2  # --dim past and --data
    graph = load_onnx(path, Stated(dims={"past": 7}))
    assert shapes(graph.logical_inputs) == {"x": (None, 1), "cache": (None, 7), "mask": (None, 8)}
    require_equal(path, graph)


def test_model_that_was_exported_for_several_rows_may_be_converted_for_one(tmp_path):
    """A batch of 8: the note says which option to give, and the option is tried."""
    path = saved(tmp_path, [NODE("MatMul", ["x", "w"], ["y"])], {"x": [8, 3]}, {"y": [8, 2]}, {"w": weights(3, 2)})
    [note] = load_onnx(path).interface.notes
    assert "--input-shape x=1,3" in note
    graph = load_onnx(path, Stated(shapes={"x": (1, 3)}))
    assert shapes(graph.logical_inputs) == {"x": (None, 3)}
    assert graph.free_batch
    require_equal(path, graph)


def test_flattened_rows_are_one_sample_a_call(tmp_path):
    """An output of N * 5 rows has no batch axis; the model is taken with one row."""
    nodes = [NODE("Reshape", ["x", "to"], ["r"]), NODE("MatMul", ["r", "w"], ["y"])]
    constants = {"to": np.array([-1, 3]), "w": weights(3, 2)}
    path = saved(tmp_path, nodes, {"x": ["n", 5, 3]}, {"y": ["m", 2]}, constants)
    graph = load_onnx(path)
    assert shapes(graph.logical_inputs) == {"x": (1, 5, 3)}
    assert shapes(graph.logical_outputs) == {"y": (5, 2)}
    assert shapes(graph.sample_inputs) == {"x": (None, 5, 3)}
    require_equal(path, graph)


def test_first_axis_of_one_may_be_left_out_of_data(tmp_path):
    """Data of a model without a batch may have the shape (N, 1, 3) or (N, 3) for an input of (1, 3)."""
    nodes = [NODE("Add", ["x", "s"], ["y"])]
    path = saved(tmp_path, nodes, {"x": [1, 3], "s": [2, 3]}, {"y": [2, 3]})
    graph = load_onnx(path)
    assert shapes(graph.sample_inputs) == {"x": (None, 3), "s": (None, 2, 3)}
    for shape in ((6, 3), (6, 1, 3)):
        np.savez(tmp_path / "d.npz", x=np.ones(shape, np.float32), s=np.ones((6, 2, 3), np.float32))
        read = load_samples(tmp_path / "d.npz", graph.sample_inputs, interface=graph.interface)
        assert {name: value.shape for name, value in read.inputs.items()} == {"x": (6, 3), "s": (6, 2, 3)}
    require_equal(path, graph)


def test_inspect_takes_the_proposed_sizes(tmp_path):
    """A model with free axes, also a time axis that comes first, is shown with the proposed sizes and a note."""
    graph = load_onnx(detector(tmp_path), Stated(propose=True))
    assert shapes(graph.logical_inputs)["x"][0] is None
    assert any("--input-shape x=1,3," in note for note in graph.interface.notes)
    nodes = [NODE("CumSum", ["x", "zero"], ["y"])]
    path = saved(tmp_path, nodes, {"x": ["steps", 3]}, {"y": ["steps", 3]}, {"zero": np.array(0)})
    graph = load_onnx(path, Stated(propose=True))
    assert shapes(graph.logical_inputs) == {"x": (128, 3)}
    assert any("--dim steps=128" in note for note in graph.interface.notes)


def test_branches_of_which_one_fits_the_sizes_name_the_input_to_fix(tmp_path):
    """An If that only an input decides is refused where a branch contradicts the sizes, with the option to give."""
    shape = helper.make_tensor_value_info
    branches = {
        "then_branch": helper.make_graph(
            [NODE("Reshape", ["x", "to"], ["a"])], "then", [], [shape("a", TensorProto.FLOAT, None)]
        ),
        "else_branch": helper.make_graph(
            [NODE("MatMul", ["x", "w"], ["b"])], "else", [], [shape("b", TensorProto.FLOAT, None)]
        ),
    }
    nodes = [NODE("Equal", ["sr", "usual"], ["same"]), NODE("If", ["same"], ["y"], name="rate", **branches)]
    constants = {"usual": np.array(16000), "to": np.array([0, 6]), "w": weights(5, 2)}
    kinds = {"sr": TensorProto.INT64}
    path = saved(tmp_path, nodes, {"x": ["n", "width"], "sr": []}, {"y": ["n", "m"]}, constants, kinds)
    with pytest.raises(UnsupportedOpError, match="rate") as caught:
        load_onnx(path, Stated(dims={"width": 6}))
    assert "--fix sr=16000" in caught.value.advice
    graph = load_onnx(path, Stated(dims={"width": 6}, fixed={"sr": 16000}))
    assert "If" not in graph.operators
    require_equal(path, graph)


def branch(name, *nodes):
    """A branch of an If that ends in the tensor `name`."""
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def test_branch_that_values_decide_makes_rows_run_one_at_a_time(tmp_path):
    """The sum of all rows decides: no trial shows it where the sums have one sign, and the graph does."""
    nodes = [
        NODE("ReduceMax", ["x"], ["most"], keepdims=0),
        NODE("Less", ["most", "limit"], ["small"]),
        NODE(
            "If",
            ["small"],
            ["y"],
            then_branch=branch("t", NODE("Neg", ["x"], ["t"])),
            else_branch=branch("e", NODE("Exp", ["x"], ["e"])),
        ),
    ]
    path = saved(tmp_path, nodes, {"x": ["n", 2]}, {"y": ["n", 2]}, {"limit": np.float32(1e9)})
    graph = load_onnx(path)
    assert not graph.free_batch
    assert shapes(graph.logical_inputs) == {"x": (None, 2)}
    assert "rows run one at a time" in graph.interface.notes[0]


def loop(cond, steps, *nodes):
    """A Loop over the state x, whose body gives out `cond`."""
    body = helper.make_graph(
        list(nodes),
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", 2]),
        ],
        [
            helper.make_tensor_value_info(cond, TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 2]),
        ],
    )
    return NODE("Loop", [steps, "yes", "x"], ["y"], body=body)


@pytest.mark.parametrize("by_value", [True, False])
def test_loop_whose_length_values_decide_runs_one_row_at_a_time(tmp_path, by_value):
    """A loop until all values are small depends on all rows; one of fixed length does not."""
    step = NODE("Mul", ["h", "half"], ["next"])
    until = [NODE("ReduceMax", ["next"], ["most"], keepdims=0), NODE("Less", ["limit", "most"], ["c"])]
    known = [NODE("Identity", ["again"], ["c"])]
    constants = {"half": np.float32(0.5), "limit": np.float32(1e-3), "steps": np.array(9), "yes": np.array(True)}
    nodes = [loop("c", "steps", step, *(until if by_value else known))]
    graph = load_onnx(saved(tmp_path, nodes, {"x": ["n", 2]}, {"y": ["n", 2]}, constants))
    assert graph.free_batch is not by_value


def test_options_to_paste_are_quoted_for_the_shell(tmp_path):
    """A name with a space is one word of the shell."""
    nodes = [NODE("ReduceMean", ["my input"], ["y"], axes=[2], keepdims=0)]
    path = saved(tmp_path, nodes, {"my input": [1, 3, None]}, {"y": [1, 3]})
    with pytest.raises(ModelFormatError, match="free axis 2;") as caught:
        load_onnx(path)
    assert "--input-shape 'my input=1,3," in caught.value.advice


def test_input_without_a_rank_gets_it_from_the_stated_shape(tmp_path):
    """Some exporters declare no axes; the error says how to give them, and they are taken."""
    nodes = [NODE("MatMul", ["x", "w"], ["y"])]
    path = saved(tmp_path, nodes, {"x": None}, {"y": None}, {"w": weights(6, 4)})
    with pytest.raises(ModelFormatError, match="no known number of axes") as caught:
        load_onnx(path)
    assert "--input-shape x=1," in caught.value.advice
    graph = load_onnx(path, Stated(shapes={"x": (1, 6)}))
    assert shapes(graph.logical_inputs) == {"x": (None, 6)}
    require_equal(path, graph)


def test_output_without_numbers_is_refused(tmp_path):
    """An output with an axis of 0 holds nothing that could be compared."""
    nodes = [NODE("Slice", ["x", "none", "none", "last"], ["y"])]
    constants = {"none": np.array([0]), "last": np.array([1])}
    path = saved(tmp_path, nodes, {"x": ["n", 3]}, {"y": ["n", 0]}, constants)
    with pytest.raises(ModelFormatError, match=r"output y has the shape .* holds no numbers"):
        load_onnx(path)


def test_output_that_is_sometimes_empty_is_told(tmp_path):
    """A list that is empty for some inputs, and has one number otherwise, is no batch of one."""
    nodes = [
        NODE("Greater", ["x", "low"], ["more"]),
        NODE("Cast", ["more"], ["count"], to=TensorProto.INT64),
        NODE("Reshape", ["count", "flat"], ["n"]),
        NODE("ConstantOfShape", ["n"], ["y"]),
    ]
    path = saved(tmp_path, nodes, {"x": [1, 1]}, {"y": ["n"]}, {"low": np.float32(-9), "flat": np.array([-1])})
    graph = load_onnx(path)
    samples = {"x": np.array([[1], [-10]], np.float32)}
    for run in (graph.run, lambda inputs: onnx_answers(path, inputs, graph=graph)):
        with pytest.raises(ConversionError, match=r"the size of output y depends on the values.*\(no numbers\)"):
            run(samples)


def test_input_axis_of_size_0_is_a_free_one(tmp_path):
    """Some exporters write 0 for a free size, and caches begin empty: the size is asked for, and taken."""
    nodes = [NODE("Concat", ["past", "x"], ["c"], axis=1), NODE("ReduceSum", ["c", "one"], ["y"], keepdims=0)]
    constants = {"one": np.array([1])}
    path = saved(tmp_path, nodes, {"x": ["n", 4, 3], "past": ["n", 0, 3]}, {"y": ["n", 3]}, constants)
    with pytest.raises(ModelFormatError, match="the file gives axis 1 of input past the size 0") as caught:
        load_onnx(path)
    assert "--input-shape past=1," in caught.value.advice
    graph = load_onnx(path, Stated(shapes={"past": (1, 2, 3)}))
    assert shapes(graph.inputs) == {"x": (None, 4, 3), "past": (None, 2, 3)}
    require_equal(path, graph)


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_division_of_whole_numbers_by_0_is_told(tmp_path, operator):
    """ONNX Runtime refuses it, and NumPy's answer of 0 is not taken for the model's."""
    kinds = dict.fromkeys("xzy", TensorProto.INT64)
    path = saved(tmp_path, [NODE(operator, ["x", "z"], ["y"])], {"x": ["n"], "z": ["n"]}, {"y": ["n"]}, kinds=kinds)
    graph = load_onnx(path)
    inputs = {"x": np.array([6, 7]), "z": np.array([2, 3])}
    assert onnx_answers(path, inputs, graph=graph)["y"].tolist() == ([3, 2] if operator == "Div" else [0, 1])
    with pytest.raises(ConversionError, match="divides whole numbers by 0") as caught:
        onnx_answers(path, {**inputs, "z": np.array([0, 3])}, graph=graph)
    assert str(caught.value).endswith(f"for some of these samples: operator {operator} (layer '')")
    assert "by zero" in caught.value.foreign_text


def test_data_of_single_rows_free_a_batch_that_the_exporter_fixed(tmp_path):
    """The file takes 3 rows; data whose samples have the shape of one row say that the first axis is the batch."""
    path = saved(tmp_path, [NODE("MatMul", ["x", "w"], ["y"])], {"x": [3, 4]}, {"y": [3, 2]}, {"w": weights(4, 2)})
    assert shapes(load_onnx(path).logical_inputs) == {"x": (3, 4)}
    graph = load_onnx(path, Stated(data={"x": DataArray((50, 4))}))
    assert shapes(graph.logical_inputs) == {"x": (None, 4)}
    assert any("exported for 3 rows" in note for note in graph.interface.notes)
    assert shapes(load_onnx(path, Stated(data={"x": DataArray((50, 3, 4))})).logical_inputs) == {"x": (3, 4)}


def test_rows_that_are_fixed_inside_are_told_where_the_data_hold_single_ones(tmp_path):
    """A Reshape to [3, 4] accepts no single row; the message says what to export, or how to give the data."""
    nodes = [NODE("Reshape", ["x", "to"], ["r"]), NODE("Softmax", ["r"], ["y"], axis=0)]
    path = saved(tmp_path, nodes, {"x": [3, 4]}, {"y": [3, 4]}, {"to": np.array([3, 4])})
    for stated in (Stated(data={"x": DataArray((50, 4))}), Stated(shapes={"x": (1, 4)})):
        with pytest.raises(ModelFormatError, match="exported for 3 rows, and cannot be run on one"):
            load_onnx(path, stated)


def test_an_output_whose_size_is_computed_from_a_size_of_the_data_is_measured(tmp_path):
    """A pitch detector: one clip [1, samples] gives [1, frames]; inference cannot follow floats, and a run can."""
    nodes = [
        NODE("Shape", ["x"], ["sizes"]),
        NODE("Cast", ["sizes"], ["floats"], to=TensorProto.FLOAT),
        NODE("Mul", ["floats", "part"], ["shares"]),
        NODE("Cast", ["shares"], ["ends"], to=TensorProto.INT64),
        NODE("Slice", ["x", "starts", "ends"], ["y"]),
    ]
    constants = {"part": np.array([1.0, 0.25], np.float32), "starts": np.array([0, 0])}
    path = saved(tmp_path, nodes, {"x": [1, "samples"]}, {"y": [1, "frames"]}, constants)
    graph = load_onnx(path, Stated(data={"x": DataArray((50, 1, 16))}))
    assert shapes(graph.outputs) == {"y": (1, 4)}
