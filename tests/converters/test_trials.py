"""First runs of artifacts: a runtime that ends its process costs one candidate."""

import subprocess
import sys

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper

from converters import trials
from converters.backends.tflite.strip import packed
from converters.framework_process import TensorFlowProcess
from converters.frontends.load import load_model
from edgekit.errors import ConversionError, RuntimeLoadError
from tests.simulators import models


@pytest.fixture(autouse=True, scope="module")
def ended():
    """End the processes of the trials."""
    yield
    trials.close()


def addition(scale):
    """A .tflite that adds two 8-bit inputs; LiteRT aborts the process where the scale of one is huge."""
    tensors = []
    for name, step in (("x", 0.02), ("z", scale), ("y", scale)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 4], schema.TensorType.INT8, 0
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [step], [0]
        tensors.append(tensor)
    operator, graph, model, code = schema.OperatorT(), schema.SubGraphT(), schema.ModelT(), schema.OperatorCodeT()
    operator.inputs, operator.outputs = [0, 1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [operator], [0, 1], [2]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], [schema.BufferT()]
    return packed(model, 1024)


def test_a_file_that_aborts_the_runtime_is_an_error_that_names_it_and_the_signal(tmp_path):
    """The message names the candidate, the runtime and the signal, not memory; the next trial works."""
    bad, good = tmp_path / "bad.tflite", tmp_path / "good.tflite"
    bad.write_bytes(addition(1e36))
    good.write_bytes(addition(0.1))
    trials.try_litert("candidate int8", good)
    with pytest.raises(ConversionError) as caught:
        trials.try_litert("candidate int8", bad)
    assert "LiteRT" in str(caught.value)
    assert "candidate int8" in str(caught.value)
    assert "SIGABRT" in str(caught.value)
    assert "memory" not in f"{caught.value} {caught.value.advice}"
    trials.try_litert("candidate int8", good, like=good)


def test_errors_of_a_runtime_keep_their_type(tmp_path):
    """A file or a model that a runtime refuses is a RuntimeLoadError; a good model passes."""
    path = tmp_path / "empty.tflite"
    path.write_bytes(b"no model")
    with pytest.raises(RuntimeLoadError):
        trials.try_litert("candidate int8", path)
    model = models.model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 3]}, {"y": ["batch", 3]})
    trials.try_onnx("candidate int8", model.SerializeToString())
    with pytest.raises(RuntimeLoadError):
        trials.try_onnx("candidate int8", np.zeros(8, np.uint8).tobytes())


def test_a_model_that_divides_by_its_input_is_tried_with_ones():
    """The first run draws whole numbers from 0; a model that divides by them is run with 1."""
    model = models.model_of([helper.make_node("Div", ["x", "z"], ["y"])], {"x": [3], "z": [3]}, {"y": [3]})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.INT64
    trials.try_onnx("candidate float32", model.SerializeToString())


MEMORY = """
import sys, numpy as np, tensorflow as tf
rng = np.random.default_rng(0)
inner, dense = rng.normal(0, 0.4, (32, 32)).astype("float32"), rng.normal(0, 0.4, (32, 32)).astype("float32")

@tf.function(input_signature=[tf.TensorSpec((6, 1, 32))])
def computed(x):
    def body(i, state, kept):
        state = tf.tanh(tf.matmul(state, inner) + x[i])
        return i + 1, state, kept.write(i, state)
    kept = tf.TensorArray(tf.float32, 6, element_shape=(1, 32))
    loop = tf.while_loop(lambda i, *_: i < 6, body, (0, tf.zeros((1, 32)), kept), maximum_iterations=6)
    return tf.matmul(tf.reshape(loop[2].stack(), (6, 32)), dense)

@tf.function(input_signature=[tf.TensorSpec((6, 1, 32))])
def stated(x):
    body = lambda i, state: (i + 1, tf.tanh(tf.matmul(state, inner) + tf.gather(x, i)))
    return tf.matmul(tf.while_loop(lambda i, _: i < 6, body, (0, tf.zeros((1, 32))), maximum_iterations=6)[1], dense)

for name, function in (("computed", computed), ("stated", stated)):
    for kinds in ([], [tf.float16]):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
        converter.optimizations, converter.target_spec.supported_types = [tf.lite.Optimize.DEFAULT] * len(kinds), kinds
        open(f"{sys.argv[1]}/{name}{16 if kinds else 32}.tflite", "wb").write(converter.convert())
"""


@pytest.mark.heavy
def test_packed_weights_after_a_loop_with_computed_sizes_are_refused(tmp_path):
    """LiteRT changed such weights between runs, in some processes; without sizes to compute, or packing, they stay."""
    subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], check=True, capture_output=True)
    with pytest.raises(ConversionError, match="after a loop whose outputs have computed sizes"):
        trials.try_litert("candidate", tmp_path / "computed16.tflite", like=tmp_path / "computed16.tflite")
    for good in ("computed32", "stated16", "stated32"):
        trials.try_litert("candidate", tmp_path / f"{good}.tflite", like=tmp_path / f"{good}.tflite")


def attention_without_bias():
    """ONNX Runtime reads the bias that is not there, and its process ends (SIGSEGV)."""
    weights = {"w": np.ones((16, 48), np.float32)}
    node = helper.make_node("Attention", ["x", "w"], ["y"], domain="com.microsoft", num_heads=2)
    ends = {"x": ["N", 5, 16]}, {"y": ["N", 5, 16]}
    return models.model_of([node], *ends, weights, domains=["com.microsoft"])


def test_a_source_that_ends_its_runtime_is_an_error_with_the_signal(tmp_path):
    """It took the whole command down, without a word. The next source works."""
    path = models.saved(attention_without_bias(), tmp_path / "model.onnx")
    x = {"x": np.ones((1, 5, 16), np.float32)}
    with TensorFlowProcess() as child:
        source = load_model(path, child)
        with pytest.raises(ConversionError, match="ended while running the source model: signal SIGSEGV"):
            source.answers(x)
        good = models.saved(models.classifier(), tmp_path / "good.onnx")
        assert load_model(good, child).answers({"image": np.ones((2, 1, 8, 8), np.float32)})


def test_sessions_of_sources_are_apart_and_close(tmp_path):
    """Two sources in one process give their own answers; one that was closed, or whose process ended, says so."""
    path = tmp_path / "good.tflite"
    path.write_bytes(addition(0.1))
    ones = {"x": np.full((1, 4), 50, np.int8), "z": np.full((1, 4), 10, np.int8)}
    with trials.SourceSession(path) as first, trials.SourceSession(path) as second:
        assert first.run(ones)["y"].tolist() == second.run(ones)["y"].tolist()
    with pytest.raises(ConversionError, match="has ended"):
        first.run(ones)
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(addition(1e36))
    with pytest.raises(ConversionError, match="SIGABRT"):
        trials.SourceSession(bad)
