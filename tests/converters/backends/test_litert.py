"""LiteRT artifacts of every kind, with layers of other precisions, made and run by the real quantizer and runtime."""

import pickle

import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.backends import ConversionContext, four_bit_default
from converters.backends.litert import LiteRTBackend
from converters.backends.tflite.facts import pieces_of
from converters.backends.tflite.ranges import fingerprints, tensor_histograms
from converters.backends.tflite.reader import match_layers, operators_of, parse_tflite, weighted_ops
from converters.calibration.range_rules import read_range
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.first_runs import require_equal
from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.graph.graph import Graph
from converters.passes.weights import with_constants
from edgekit.bundle.recipe import PRECISIONS, RANGES, Recipe
from edgekit.errors import CalibrationError, ConversionError
from edgekit.sketches.histogram import Histogram
from tests.simulators import models
from tests.simulators.conv_models import separable

pytestmark = pytest.mark.heavy

KINDS = ("int8", "int8-dynamic", "int8-weights")


@pytest.fixture(scope="module")
def samples():
    images, _ = models.patterns(60)
    return Samples({"image": images})


@pytest.fixture(scope="module")
def backend(child, samples, tmp_path_factory):
    graph = separable()
    context = ConversionContext(graph, graph.with_batch(1), samples, child, tmp_path_factory.mktemp("litert"))
    return LiteRTBackend(context)


@pytest.fixture(scope="module")
def answers(backend, samples, tmp_path_factory):
    """Build a recipe and answer the samples with it: (artifact, scores)."""

    def answers(recipe):
        artifact = backend.build(recipe)
        runtime = open_artifact(artifact, tmp_path_factory.mktemp("run"))
        try:
            return artifact, run_rows(runtime, samples.inputs)["scores"]
        finally:
            runtime.close()

    return answers


def dtypes(artifact):
    return [op.dtype for op in weighted_ops(artifact.data)]


EXPECTED = {
    "float32": ["float32"] * 6,
    "float16": ["float16"] * 6,
    **{kind: ["int8"] * 6 for kind in KINDS},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_kind_holds_its_weights_and_answers_alike(precision, answers, samples):
    """Clients see a float interface, and every kind agrees with the float model."""
    artifact, found = answers(Recipe(precision))
    assert dtypes(artifact) == EXPECTED[precision]
    expected = separable().run(samples.inputs)["scores"]
    assert np.abs(found - expected).max() < {"float32": 1e-5, "float16": 5e-3}.get(precision, 0.06)
    assert artifact.inputs[0].artifact.dtype.value == ("int8" if precision == "int8" else "float32")


@pytest.mark.parametrize("precision", ["float32", "int8", "int8-dynamic", "int8-weights"])
def test_one_delegate_takes_the_whole_graph(precision, answers, tmp_path):
    """XNNPACK runs the graph in one piece, without operators between two parts."""
    from ai_edge_litert.interpreter import Interpreter

    artifact, _ = answers(Recipe(precision))
    (tmp_path / "m.tflite").write_bytes(artifact.data)
    interpreter = Interpreter(model_path=str(tmp_path / "m.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    assert names[len(operators_of(artifact.data)) :] == ["DELEGATE"]


@pytest.mark.parametrize("precision", KINDS)
def test_named_layers_stay_float(precision, answers):
    """Float layers are float16. Two layers with equal weights are matched by their order; only one of them is float."""
    second = ("point1", "point2") if precision == "int8-weights" else ("point2",)  # there, what is shared stays alike
    artifact, _ = answers(Recipe(precision, float_layers=(*second, "first")))
    points = ("float16", "float16") if "point1" in second else ("int8", "float32")
    assert dtypes(artifact) == ["float16", "int8", points[0], "int8", points[1], "int8"]


@pytest.mark.parametrize("share", [1e-9, 1e6])
def test_weights_that_halves_do_not_hold_stay_whole(share, child, samples, tmp_path):
    """Weights that are too small or too large for float16 stay float32, and the answers stay equal."""
    graph = separable()
    weights = {"wp": graph.constants["wp"] * np.float32(share)}
    graph = with_constants(graph, weights)
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), samples, child, tmp_path))
    artifact = backend.build(Recipe("int8-weights", float_layers=("first", "point1", "point2")))
    assert dtypes(artifact) == ["float16", "int8", "float32", "int8", "float32", "int8"]


@pytest.mark.parametrize("precision", KINDS)
def test_halves_leave_the_graph_in_one_piece(precision, answers, samples, tmp_path):
    """XNNPACK unpacks float16 weights at load time, and the answers stay near."""
    artifact, found = answers(Recipe(precision, float_layers=("first", "point1", "point2")))
    (tmp_path / "m.tflite").write_bytes(artifact.data)
    assert pieces_of(tmp_path / "m.tflite")[0] == 1
    assert np.abs(found - separable().run(samples.inputs)["scores"]).max() < 0.02


def test_embedding_tables_are_halves(child, tmp_path):
    """A float16 file holds the table that a Gather reads in float16, also one whose last row is read."""
    rng = np.random.default_rng(2)
    weights = {"table": rng.normal(0, 1, (300, 16)), "w": rng.normal(0, 0.3, (16, 4))}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("ReduceMean", ["words"], ["mean"], axes=[1], keepdims=0, name="mean"),
        helper.make_node("MatMul", ["mean", "w"], ["y"], name="head"),
    ]
    constants = {name: value.astype(np.float32) for name, value in weights.items()}
    model = models.model_of(nodes, {"ids": ["N", 8]}, {"y": ["N", 4]}, constants)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    graph = Graph(model)
    ids = Samples({"ids": rng.integers(0, 300, (20, 8)).astype(np.int32)})
    ids.inputs["ids"][0] = 299
    artifact = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), ids, child, tmp_path)).build(
        Recipe("float16")
    )
    assert len(artifact.data) < 2 * 300 * 16 + 3000
    runtime = open_artifact(artifact, tmp_path / "run")
    try:
        found = run_rows(runtime, ids.inputs)["y"]
    finally:
        runtime.close()
    np.testing.assert_allclose(found, graph.run(ids.inputs)["y"], atol=2e-3)


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        (Recipe("int8-dynamic"), "2.1"),
        (Recipe("int8-dynamic", per_channel=False), ""),
        (Recipe("int8-dynamic", float_layers=("last",)), ""),
        (Recipe("int8"), ""),
        (Recipe("int8-weights"), ""),
    ],
    ids=lambda value: value.id if isinstance(value, Recipe) else "",
)
def test_a_file_that_tflite_runtime_answers_wrongly_asks_for_litert(recipe, wanted, answers):
    """tflite-runtime 2.14 uses the first channel's scale for all channels of a dynamic dense layer, silently."""
    artifact, _ = answers(recipe)
    assert artifact.runtime_version == wanted


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_named_layers_have_4_bits(precision, rounding, backend, answers):
    """The 4-bit integers in the file are those of the rounding pass, and the artifact requires a newer runtime."""
    names = four_bit_default(backend.layers())
    assert names == ("point1", "point2")
    recipe = Recipe(precision, int4_layers=names, rounding=rounding)
    artifact, found = answers(recipe)
    assert dtypes(artifact) == ["int8", "int8", "int4", "int8", "int4", "int8"]
    assert artifact.runtime_version == "2.1"
    prepared = backend._context.prepared(recipe, backend._context.fixed).constants["wp"].reshape(8, 8)
    levels = np.rint(prepared * 7 / np.abs(prepared).max(axis=1, keepdims=True)).astype(np.int8)
    raw = np.frombuffer(weighted_ops(artifact.data)[2].content, np.uint8)
    nibbles = np.stack([raw & 15, raw >> 4], axis=1).ravel().astype(np.int8)
    np.testing.assert_array_equal(np.where(nibbles > 7, nibbles - 16, nibbles).reshape(8, 8), levels)
    assert np.isfinite(found).all()


def test_layers_are_found_by_their_weights(backend):
    """Layers with equal weights are matched by their order."""
    context = backend._context
    ops = weighted_ops(context.lowered(context.fixed).path.read_bytes())
    assert match_layers(context.fixed, ops) == {n: i for i, n in enumerate(layer.name for layer in backend.layers())}


def test_rule_that_names_no_layer_is_refused(backend):
    """An unknown layer name is an error; the rule is not ignored silently."""
    with pytest.raises(ConversionError, match="pointy"):
        backend.build(Recipe("int8-dynamic", float_layers=("pointy",)))


def test_what_needs_samples_is_refused_without(child, tmp_path):
    """Rounding to the nearest needs no samples; rounding by data does."""
    graph = separable()
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), None, child, tmp_path))
    assert dtypes(backend.build(Recipe("int8-dynamic", int4_layers=("point1",))))[2] == "int4"
    with pytest.raises(CalibrationError):
        backend.build(Recipe("int8-dynamic", int4_layers=("point1",), rounding="gptq"))


def test_stripped_files_answer_bit_by_bit(backend, tmp_path):
    """Files with 4-bit weights and float layers answer with equal bits after the strip."""
    for recipe in (
        Recipe("int8", int4_layers=("point1",), float_layers=("last",)),
        Recipe("int8-dynamic", int4_layers=("point2",), float_layers=("deep1",)),
    ):
        artifact = backend.build(recipe)
        (tmp_path / "after.tflite").write_bytes(artifact.data)
        before = backend._context.folder / f"litert-{recipe.id}.tflite"
        require_equal(before, tmp_path / "after.tflite")
        assert len(artifact.data) < 0.9 * before.stat().st_size


def test_ranges_come_from_the_one_calibration(backend, samples):
    """A tensor with the values of a canonical tensor has its histogram; no tensor is measured twice."""
    context = backend._context
    lowered = context.lowered(context.fixed)
    rows = list(backend._rows(lowered))
    probes, known = context.probes(context.fixed), context.calibration().tensors
    names = tensor_names(lowered.path)
    found = tensor_histograms(lowered.path, rows, names, probes=probes, known=known)
    assert sum(any(histogram is one for one in known.values()) for histogram in found.values()) == len(names)
    # what no canonical tensor matches is measured through the runtime, to the same values
    alone = tensor_histograms(lowered.path, rows, names, probes=fingerprints([{"x": np.zeros(3)}] * 4), known={})
    for name, histogram in found.items():
        np.testing.assert_allclose(
            (alone[name].minimum, alone[name].maximum), (histogram.minimum, histogram.maximum), atol=1e-4
        )


@pytest.mark.parametrize("rule", RANGES)
def test_ranges_of_each_rule_are_in_the_file(rule, answers, samples):
    """The scale of the input follows the range rule, and the answers stay near."""
    artifact, found = answers(Recipe("int8", ranges=rule))
    low, high = read_range(Histogram.of(samples.inputs["image"]), rule)
    np.testing.assert_allclose(artifact.inputs[0].scale, (max(high, 0) - min(low, 0)) / 255, rtol=1e-4)
    assert np.abs(found - separable().run(samples.inputs)["scores"]).max() < 0.15


def test_evened_out_and_corrected_files_answer_alike(answers, samples):
    """Ranges are measured again after equalization, and the file has the new weights."""
    expected = separable().run(samples.inputs)["scores"]
    artifact, found = answers(Recipe("int8", correct_bias=True))
    assert np.abs(found - expected).max() < 0.06
    layers = ("first", "deep1", "point1", "deep2", "point2")
    artifact, found = answers(Recipe("int8-weights", equalize=True, float_layers=layers))
    assert np.abs(found - expected).max() < 0.02
    assert dtypes(artifact) == ["float16"] * 5 + ["int8"]


def test_copy_of_the_context_builds_what_was_lowered_before_it(backend, tmp_path):
    """A copy in another process gets the float file, so it starts no TensorFlow."""
    recipe = Recipe("int8-dynamic", int4_layers=("point1", "point2"), rounding="gptq", equalize=True)
    prepared_inputs = pickle.loads(pickle.dumps(backend._context.prepared_inputs(recipe, backend.graph, lower=True)))
    copy = LiteRTBackend(backend._context.copy_with(TensorFlowProcess(), tmp_path))
    copy._context.store_inputs(recipe, copy.graph, prepared_inputs)
    assert copy.build(recipe).data == backend.build(recipe).data
    assert copy._context.child._process is None


def tensor_names(path):
    """Names of the activations of a file: its inputs and the outputs of operators."""
    model = parse_tflite(path.read_bytes())
    graph = model.subgraphs[0]
    indices = [*graph.inputs, *(i for operator in graph.operators for i in operator.outputs)]
    return [graph.tensors[i].name.decode() for i in indices]


def test_weights_that_layers_of_4_and_8_bits_share_have_4_bits_in_both(child, tmp_path):
    """The quantizer fails on one tensor in two types; weights on the grid of 4 bits lose nothing."""
    grid = np.random.default_rng(0).integers(-7, 8, (32, 32)).astype(np.float32)
    grid[0] = 7
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="second"),
    ]
    graph = Graph(models.model_of(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, {"w": grid / 50}))
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), None, child, tmp_path))
    assert dtypes(backend.build(Recipe("int8-weights", int4_layers=("second",)))) == ["int4", "int4"]


@pytest.mark.parametrize("precision", ["float16", "int8-weights"])
def test_a_matrix_that_multiplies_from_both_sides(precision, child, tmp_path):
    """LiteRT has two operators for that, and litert-quantizer makes a copy of the matrix whose name it cannot read."""
    half = np.random.default_rng(0).normal(0, 0.1, (32, 32)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="right"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["w", "b"], ["y"], name="left"),
    ]
    model = models.model_of(nodes, {"x": [1, 32, 32]}, {"y": [1, 32, 32]}, {"w": half + half.T})
    graph = canonical(model, "test")
    artifact = LiteRTBackend(ConversionContext(graph, graph, None, child, tmp_path)).build(Recipe(precision))
    x = np.random.default_rng(1).normal(0, 1, (1, 32, 32)).astype(np.float32)
    runtime = open_artifact(artifact, tmp_path / "run")
    try:
        found = run_rows(runtime, {"x": x})["y"]
    finally:
        runtime.close()
    np.testing.assert_allclose(found, graph.run({"x": x})["y"], atol=0.1)


@pytest.mark.parametrize("alpha", [1 / 6, 0.2])
def test_the_factor_of_a_hard_sigmoid_leaves_the_layer_before_it_its_4_bits(alpha, child, tmp_path):
    """In front of the limits, TensorFlow's converter would multiply it into the rounded weights."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="dense"),
        helper.make_node("HardSigmoid", ["a"], ["y"], name="gate", alpha=alpha),
    ]
    weights = {"w": np.random.default_rng(3).normal(0, 1, (32, 32)).astype(np.float32)}
    graph = Graph(models.model_of(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, weights))
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), None, child, tmp_path))
    assert dtypes(backend.build(Recipe("int8-weights", int4_layers=("dense",)))) == ["int4"]


@pytest.mark.parametrize("precision", KINDS)
def test_one_of_two_layers_with_the_same_weights_can_be_float(precision, child, tmp_path):
    """Of the kind with integer weights only, the quantizer fails on such weights, so both are float."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="second"),
    ]
    weights = {"w": rng.normal(0, 0.2, (32, 32)).astype(np.float32)}
    graph = Graph(models.model_of(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, weights))
    samples = Samples({"x": rng.normal(0, 1, (60, 32)).astype(np.float32)})
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), samples, child, tmp_path))
    found = dtypes(backend.build(Recipe(precision, float_layers=("second",))))
    assert found == (["float16", "float16"] if precision == "int8-weights" else ["int8", "float32"])


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("name", ["many/steps", "groups"])
def test_layers_of_several_operators_can_stay_float(name, precision, child, tmp_path):
    """All steps of an unrolled layer, and all groups of a transposed convolution; the dense layer has 8 bits."""
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "i", "r"], ["s"], name="many/steps", hidden_size=8, direction="bidirectional"),
        helper.make_node("Transpose", ["s"], ["a"], perm=[2, 1, 3, 0]),
        helper.make_node("Reshape", ["a", "image"], ["b"]),
        helper.make_node("ConvTranspose", ["b", "k"], ["c"], name="groups", group=2, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="dense"),
    ]
    shapes = {"i": (2, 32, 6), "r": (2, 32, 8), "k": (16, 16, 2, 2), "w": (32, 16)}
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["image"] = np.array([-1, 16, 2, 2])
    graph = Graph(models.model_of(nodes, {"x": ["n", 4, 6]}, {"y": ["n", 16]}, weights))
    samples = Samples({"x": rng.normal(0, 1, (60, 4, 6)).astype(np.float32)})
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), samples, child, tmp_path))
    ops = weighted_ops(backend.build(Recipe(precision, float_layers=(name,))).data)
    groups = {op.dtype for op in ops if op.operator == "TRANSPOSE_CONV"}
    steps = {op.dtype for op in ops[:-1] if op.operator != "TRANSPOSE_CONV"}
    kept, others = (groups, steps) if name == "groups" else (steps, groups)
    assert kept <= {"float16", "float32"}
    assert others == {"int8"}
    assert ops[-1].dtype == "int8"


def test_output_without_a_batch_is_refused_by_name(child, tmp_path):
    """Rows of a batch run one at a time, and nothing says how to join a constant of each run."""
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu"), helper.make_node("Identity", ["c"], ["z"], name="c")]
    ends = {"y": ["n", 4], "z": [1]}
    graph = canonical(models.model_of(nodes, {"x": ["n", 4]}, ends, {"c": np.ones(1, np.float32)}), "m.onnx")
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), None, child, tmp_path))
    with pytest.raises(ConversionError, match="output z has no batch") as caught:
        backend.build(Recipe())
    assert "--cut y" in caught.value.advice


@pytest.mark.parametrize("precision", KINDS)
def test_vector_that_multiplies_a_dense_layer_is_a_part_of_it(precision, child, tmp_path):
    """TensorFlow's converter merges it into weights and bias, whose shape (1, O) LiteRT refuses in int8."""
    rng = np.random.default_rng(2)
    weights = {name: rng.normal(0, 1, size).astype(np.float32) for name, size in (("w", (6, 8)), ("b", 8), ("s", 8))}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["d"], name="dense"),
        helper.make_node("Mul", ["d", "s"], ["y"], name="scale"),
    ]
    graph = Graph(models.model_of(nodes, {"x": ["n", 6]}, {"y": ["n", 8]}, weights))
    samples = Samples({"x": rng.normal(0, 1, (60, 6)).astype(np.float32)})
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), samples, child, tmp_path))
    runtime = open_artifact(backend.build(Recipe(precision)), tmp_path / "run")
    found, expected = run_rows(runtime, samples.inputs)["y"], graph.run(samples.inputs)["y"]
    runtime.close()
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_a_division_by_small_values_runs_in_an_int8_file(child, tmp_path):
    """The divisor is near 0 for some inputs, and far from it for others, as in linear attention."""
    nodes = [
        models.helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        models.helper.make_node("Relu", ["a"], ["r"], name="relu"),
        models.helper.make_node("ReduceSum", ["r", "axis"], ["s"], name="sum"),
        models.helper.make_node("Add", ["s", "tiny"], ["d"], name="above"),
        models.helper.make_node("Div", ["r", "d"], ["q"], name="share"),
        models.helper.make_node("MatMul", ["q", "v"], ["y"], name="last"),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(0, 1, (8, 6)).astype(np.float32),
        "v": rng.normal(0, 1, (6, 3)).astype(np.float32),
        "axis": np.array([1], np.int64),
        "tiny": np.float32(1e-3),
    }
    graph = Graph(models.model_of(nodes, {"x": ["batch", 8]}, {"y": ["batch", 3]}, constants))
    x = (rng.normal(0, 1, (60, 8)) * rng.choice([0.003, 1.0], (60, 1))).astype(np.float32)
    context = ConversionContext(graph, graph.with_batch(1), Samples({"x": x}), child, tmp_path)
    runtime = open_artifact(LiteRTBackend(context).build(Recipe("int8")), tmp_path / "run")
    difference = np.abs(run_rows(runtime, {"x": x})["y"] - graph.run({"x": x})["y"])
    runtime.close()
    assert difference[np.abs(x).max(axis=1) > 0.5].mean() < 0.05


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int8-weights"])
def test_a_batch_product_with_a_constant_on_the_left_is_made_in_every_kind(precision, child, tmp_path):
    """Learned queries over a feature map: the quantizer fails on the constant, or LiteRT on its 8 bits."""
    nodes = [
        models.helper.make_node("MatMul", ["x", "w"], ["k"], name="keys"),
        models.helper.make_node("Transpose", ["k"], ["t"], perm=[0, 2, 1]),
        models.helper.make_node("MatMul", ["q", "t"], ["s"], name="scores"),
        models.helper.make_node("Softmax", ["s"], ["a"], axis=-1),
        models.helper.make_node("MatMul", ["a", "k"], ["y"], name="mixed"),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(0, 1, (8, 16)).astype(np.float32),
        "q": rng.normal(0, 0.3, (1, 4, 16)).astype(np.float32),
    }
    graph = Graph(models.model_of(nodes, {"x": ["batch", 9, 8]}, {"y": ["batch", 4, 16]}, constants))
    x = {"x": rng.normal(0, 1, (60, 9, 8)).astype(np.float32)}
    context = ConversionContext(graph, graph.with_batch(1), Samples(x), child, tmp_path)
    runtime = open_artifact(LiteRTBackend(context).build(Recipe(precision)), tmp_path / "run")
    difference = np.abs(run_rows(runtime, x)["y"] - graph.run(x)["y"])
    runtime.close()
    assert difference.mean() < 0.05
