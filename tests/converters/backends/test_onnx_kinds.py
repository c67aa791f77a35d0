"""ONNX Runtime artifacts of every kind, of models other than image networks, at the highest optimisation level."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.backends import ConversionContext
from converters.backends.onnx_cpu import OnnxCpuBackend, unfit
from converters.backends.onnx_sharing import unshared
from converters.backends.onnx_weights import integer_weights
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.graph.graph import Graph
from converters.passes import Simplify, run_pass
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ConversionError
from tests.simulators import dense_models, models

KINDS = ("int8", "int8-dynamic", "int8-weights")
MODELS = {
    "autoencoder": dense_models.autoencoder,
    "lstm": dense_models.lstm,
    "encoder": dense_models.encoder,
    "encoder-whole": lambda: dense_models.encoder(whole_norms=True),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A backend for a model, its samples, and the float answers."""
    made = {}

    def make(name):
        if name not in made:
            graph = run_pass(Simplify(), MODELS[name]()).graph
            fixed = run_pass(Simplify(), graph.with_batch(1)).graph
            shape = [size or 1 for size in graph.inputs[0].shape[1:]]
            samples = Samples({"x": np.random.default_rng(1).normal(0, 1, (80, *shape)).astype(np.float32)})
            context = ConversionContext(graph, fixed, samples, TensorFlowProcess(), tmp_path_factory.mktemp(name))
            made[name] = OnnxCpuBackend(context), samples, graph.run(samples.inputs)["y"]
        return made[name]

    return make


@pytest.fixture(scope="module")
def error(make, tmp_path_factory):
    """Build a recipe: (its model, root mean squared error relative to the answers)."""

    def error(name, recipe):
        backend, samples, expected = make(name)
        artifact = backend.build(recipe)
        runtime = open_artifact(artifact, tmp_path_factory.mktemp("run"))
        try:
            found = run_rows(runtime, samples.inputs)["y"]
        finally:
            runtime.close()
        share = float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))
        return onnx.load_model_from_string(artifact.data), share

    return error


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_and_answers_near_the_float_model(kind, name, error):
    """Every kind loads and answers near float, also transformers whose normalizations share constants."""
    model, share = error(name, Recipe(kind))
    assert share < 0.05
    large = {t.name: t.data_type for t in model.graph.initializer if np.prod(t.dims) > 64}
    kept = TensorProto.FLOAT if kind == "int8" and name == "lstm" else TensorProto.INT8  # QDQ has no LSTM
    assert TensorProto.INT8 in large.values() or kept == TensorProto.FLOAT


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_4_bits_and_float_layers_are_what_was_asked(kind, error):
    """4 bits make the file smaller, rounding by data is more precise, and the operator set supports INT4."""
    named = ("dense0", "dense1", "dense3")
    model, nearest = error("autoencoder", Recipe(kind, int4_layers=named, float_layers=("dense4",)))
    assert sorted(t.data_type for t in model.graph.initializer if len(t.dims) == 2) == sorted(
        [TensorProto.FLOAT, TensorProto.INT8, *[TensorProto.INT4] * 3]
    )
    assert model.opset_import[0].version == 21
    _, fitted = error("autoencoder", Recipe(kind, int4_layers=named, float_layers=("dense4",), rounding="gptq"))
    assert fitted < 0.5 * nearest


def test_dynamic_kernels_run(error):
    """Dense layers of a transformer and an LSTM become operators that quantize their inputs at run time."""
    for name, operator in (("encoder", "MatMulInteger"), ("lstm", "DynamicQuantizeLSTM")):
        model, _ = error(name, Recipe("int8-dynamic"))
        assert operator in {node.op_type for node in model.graph.node}


def test_dynamic_convolutions_are_refused(tmp_path):
    """Dynamic convolutions are slower than float ones; the error names other precisions."""
    graph = canonical(models.classifier(), "test")
    backend = OnnxCpuBackend(ConversionContext(graph, graph.with_batch(1), None, TensorFlowProcess(), tmp_path))
    with pytest.raises(ConversionError, match="in convolutions") as caught:
        backend.build(Recipe("int8-dynamic"))
    assert "int8-weights" in caught.value.advice


def test_sums_around_normalizations_stay_float(make):
    """Scales and shifts of Gelu and normalizations stay float, and the residual sums that only these read."""
    backend, _, _ = make("encoder")
    graph = backend._context.fixed
    kept = unfit(graph)
    assert {"Add_sum1", "Add_sum2"} <= kept
    assert {"Mul_gelu", "Add_shifted", "Mul_norm1.g", "Add_norm2", "Add_norm1.e"} <= kept


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(3, 5), (7, 1)])
def test_integers_times_scales_are_the_weights(bits, shape):
    """Integers times scales are within half a step of the weights, also for odd sizes and channels of zeros."""
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 1, shape).astype(np.float32)
    weights[:, -1] = 0
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    graph = Graph(models.model_of(nodes, {"x": ["n", shape[0]]}, {"y": ["n", shape[1]]}, {"w": weights}))
    found = integer_weights(graph, {"dense"}, bits=bits).run({"x": np.eye(shape[0], dtype=np.float32)})["y"]
    step = np.abs(weights).max(axis=0) / {4: 7, 8: 127}[bits]
    assert (np.abs(found - weights) <= step / 2 + 1e-6).all()


def shared_weights():
    """A model with two MatMuls that read one constant."""
    weights = np.random.default_rng(3).normal(0, 1, (8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    return Graph(models.model_of(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, {"w": weights}))


def test_shared_weights_are_integers_of_their_own():
    """Shared weights are written once as integers, and the float constant is removed."""
    graph = shared_weights()
    cured = Graph(unshared(integer_weights(graph, {"one", "two"}, bits=8).model))
    assert [t.data_type for t in cured.model.graph.initializer if len(t.dims) == 2] == [TensorProto.INT8] * 2
    x = {"x": np.eye(8, dtype=np.float32)}
    np.testing.assert_allclose(cured.run(x)["y"], graph.run(x)["y"], atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_models_with_shared_weights_are_made(kind, tmp_path):
    """Every kind of a model with shared constants loads."""
    graph = shared_weights()
    samples = Samples({"x": np.random.default_rng(0).normal(0, 1, (20, 8)).astype(np.float32)})
    backend = OnnxCpuBackend(ConversionContext(graph, graph.with_batch(1), samples, TensorFlowProcess(), tmp_path))
    artifact = backend.build(Recipe(kind))
    found = run_rows(open_artifact(artifact, tmp_path), samples.inputs)["y"]
    assert np.abs(found - graph.run(samples.inputs)["y"]).max() < 0.5


def test_per_tensor_weights_have_one_scale():
    """For runtimes that want it."""
    graph = dense_models.autoencoder()
    found = integer_weights(graph, {"dense0"}, bits=8, per_channel=False)
    scale = next(t for t in found.model.graph.initializer if t.name.endswith(".s"))
    assert numpy_helper.to_array(scale).shape == ()
    x = {"x": np.random.default_rng(0).normal(0, 1, (4, 32)).astype(np.float32)}
    np.testing.assert_allclose(found.run(x)["y"], graph.run(x)["y"], atol=0.05)
