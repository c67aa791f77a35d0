"""Models with operators that have no ONNX form: they keep the direct route to LiteRT."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from converters import convert
from converters.backends.tflite.reader import operators_of
from converters.frontends import load_model
from converters.graph.stated import Stated
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.errors import ModelFormatError, SettingsError, UnsupportedOpError
from edgekit.runtimes import open_runtime

pytestmark = pytest.mark.heavy

MODELS = """
import sys, keras, tensorflow as tf
from keras import layers
folder = sys.argv[1]
keras.utils.set_random_seed(1)

def spec(*shape, name):
    return tf.TensorSpec(shape, tf.float32, name=name)

class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.random.normal((9, 3), seed=1))
        self.v = tf.Variable(tf.random.normal((4, 4), seed=2) * 0.1)
        self.k = tf.Variable(tf.random.normal((3, 3, 1, 4), seed=3))
        self.count = tf.Variable(tf.zeros((1, 4)))
    @tf.function(input_signature=[spec(1, 16, name="wave")])
    def spectrum(self, wave):
        return {"scores": tf.nn.softmax(tf.abs(tf.signal.rfft(wave)) @ self.w)}
    @tf.function(input_signature=[spec(None, 4, name="x")])
    def loop(self, x):
        step = tf.constant(0)
        while step < 5 and tf.reduce_sum(x) < 1000.0:
            x, step = tf.nn.relu(x @ self.v) + 1.0, step + 1
        return {"y": x}
    @tf.function(input_signature=[spec(None, None, None, 1, name="image")])
    def picture(self, image):
        return {"means": tf.reduce_mean(tf.nn.conv2d(image, self.k, 1, "SAME"), axis=[1, 2])}
    @tf.function(input_signature=[spec(None, None, name="wave")])
    def windows(self, wave):
        return {"levels": tf.reduce_max(tf.reshape(wave, (1, -1, 576)), axis=2)}
    @tf.function(input_signature=[spec(1, 4, name="x")])
    def remember(self, x):
        self.count.assign(self.count * 0.5 + x)
        return {"y": self.count + 0.0}
    @tf.function(input_signature=[spec(1, 16, name="wave")])
    def flex(self, wave):
        return {"y": tf.linalg.inv(tf.reshape(wave, (1, 4, 4)))}

def write(name, method, *options):
    plain = tf.Module()
    plain.net, plain.call = net, method
    tf.saved_model.save(plain, folder + "/saved", signatures=plain.call)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder + "/saved")
    if "half" in options:
        converter.optimizations, converter.target_spec.supported_types = [tf.lite.Optimize.DEFAULT], [tf.float16]
    if "int8" in options:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: [[tf.ones((1, 8, 8, 1))]]
    if "flex" in options:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    open(f"{folder}/{name}.tflite", "wb").write(converter.convert())

net = Net()
write("spectrum", net.spectrum)
write("loop", net.loop)
write("picture", net.picture)
write("windows", net.windows)
write("half", net.picture, "half")
write("int8", net.picture, "int8")
write("remember", net.remember)
write("flex", net.flex, "flex")
x = keras.Input((2,), name="x")
bins = layers.Discretization(bin_boundaries=[0.0, 1.0], output_mode="one_hot", name="bins")(x)
keras.Model(x, layers.Dense(2, name="last")(layers.Flatten()(bins))).save(folder + "/bins.keras")
keras.Model(x, keras.ops.slogdet(keras.ops.reshape(keras.ops.tile(x, (1, 2)), (-1, 2, 2)))[1]).save(
    folder + "/determinant.keras")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opaque")
    script = folder / "models.py"  # TensorFlow reads the source of functions with loops
    script.write_text(MODELS)
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder


def rows(*shape):
    return np.random.default_rng(7).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "given", "operator", "parameters"),
    [("spectrum", {"wave": rows(3, 16)}, "RFFT2D", 27), ("loop", {"x": rows(3, 4)}, "WHILE", 18)],
)
def test_operators_that_cannot_be_read_keep_the_file(name, given, operator, parameters, folder, child):
    """The graph hides the operators, names the first one without ONNX form, and answers as the file does."""
    source = load_model(folder / f"{name}.tflite", child)
    assert source.graph.opaque.operator == operator
    assert operator in source.graph.operators
    assert source.graph.parameters == parameters
    expected = source.answers(given)
    for graph in (source.graph, pickle.loads(pickle.dumps(source.graph))):
        for output, value in graph.run(given).items():
            np.testing.assert_allclose(value, expected[output], atol=1e-6)


def test_such_a_model_becomes_a_bundle_for_litert(folder, child, tmp_path):
    """Float, dynamic and static candidates are made of the file; the bundle answers as the file does."""
    np.savez(tmp_path / "data.npz", wave=rows(60, 16))
    [report] = convert(
        folder / "spectrum.tflite", targets=["raspberry-pi-4"], data=tmp_path / "data.npz", output=tmp_path
    )
    assert {"float32-direct", "int8-direct"} <= {c.id for c in report.candidates}
    assert "RFFT2D" in report.route.reason
    bundle = tmp_path / "spectrum-1.0.0-raspberry-pi-4"
    runtime = open_runtime(parse_manifest((bundle / MANIFEST_NAME).read_bytes()), bundle)
    given = {"wave": rows(4, 16)}
    answers = runtime.run(given)["scores"]
    runtime.close()
    expected = load_model(folder / "spectrum.tflite", child).answers(given)["scores"]
    assert (answers.argmax(1) == expected.argmax(1)).all()


def test_other_targets_are_refused_by_the_operator(folder, tmp_path):
    """ONNX Runtime cannot run the file; the error names operator, layer and target, before any work."""
    with pytest.raises(UnsupportedOpError, match="target jetson-orin") as caught:
        convert(folder / "spectrum.tflite", targets=["raspberry-pi-4", "jetson-orin"], output=tmp_path)
    assert caught.value.op == "RFFT2D"
    assert "LiteRT" in caught.value.advice


def test_a_keras_model_goes_by_tensorflows_own_converter(folder, child):
    """tf2onnx lacks Bucketize, and LiteRT has it: the file answers as Keras does."""
    source = load_model(folder / "bins.keras", child)
    assert source.graph.opaque.operator == "Bucketize"
    given = {"x": rows(5, 2)}
    np.testing.assert_allclose(source.graph.run(given)["last"], source.answers(given)["last"], atol=1e-5)


def test_an_operator_that_litert_lacks_too_is_refused_by_name(folder, child):
    """Neither route exists; the error names the operator and what to do."""
    with pytest.raises(UnsupportedOpError, match="no ONNX form") as caught:
        load_model(folder / "determinant.keras", child)
    assert caught.value.op
    assert caught.value.advice


def test_free_sizes_are_asked_for_and_taken(folder, child):
    """A file with free height and width is not read as 1x1; --input-shape gives the sizes."""
    with pytest.raises(ModelFormatError, match=r"\[\?, \?, \?, 1\]") as caught:
        load_model(folder / "picture.tflite", child)
    assert "--input-shape image=1,224,224,1" in caught.value.advice
    shown = load_model(folder / "picture.tflite", child, Stated(propose=True)).graph
    assert shown.interface.notes == ("free axes are shown with proposed sizes: --input-shape image=1,224,224,1",)
    source = load_model(folder / "picture.tflite", child, Stated({"image": (1, 8, 6, 1)}))
    assert source.graph.inputs[0].shape == (1, 8, 6, 1)
    given = {"image": rows(2, 8, 6, 1)}
    np.testing.assert_allclose(source.graph.run(given)["means"], source.answers(given)["means"], atol=1e-5)
    with pytest.raises(SettingsError, match="--input-shape gives image"):
        load_model(folder / "picture.tflite", child, Stated({"image": (1, 8, 6, 3)}))


def test_the_proposed_sizes_are_some_that_run(folder, child):
    """A second of sound does not fit windows of 576 samples, and one window does."""
    with pytest.raises(ModelFormatError, match=r"\[\?, \?\]") as caught:
        load_model(folder / "windows.tflite", child)
    assert "--input-shape wave=1,576;" in caught.value.advice
    with pytest.raises(ModelFormatError, match=r"does not run with these sizes of its inputs: wave \[1, 7\]"):
        load_model(folder / "windows.tflite", child, Stated({"wave": (1, 7)}))


def test_weights_in_half_precision_become_float32(folder, child):
    """The DEQUANTIZE of the weights is gone in the direct file too, so that every format can be made of it."""
    source = load_model(folder / "half.tflite", child, Stated({"image": (1, 8, 8, 1)}))
    assert source.graph.opaque is None
    assert "DEQUANTIZE" not in operators_of(source.direct(["image"], ["means"]).data)
    given = {"image": rows(2, 8, 8, 1)}
    np.testing.assert_allclose(source.graph.run(given)["means"], source.answers(given)["means"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("int8", ModelFormatError, "is quantized already"),
        ("remember", ModelFormatError, "changes its own variables"),
        ("flex", UnsupportedOpError, "custom operator"),
    ],
)
def test_files_that_no_route_takes_are_refused(name, kind, message, folder, child):
    """Quantized files, state in variables and operators of TensorFlow each have an error with what to do."""
    with pytest.raises(kind, match=message) as caught:
        load_model(folder / f"{name}.tflite", child)
    assert caught.value.advice
