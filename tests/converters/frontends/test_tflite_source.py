"""Float .tflite files as sources: their canonical graph gives the same outputs as LiteRT."""

import subprocess
import sys

import numpy as np
import pytest

from converters.backends.tflite.reader import operators_of
from converters.frontends import load_model
from converters.frontends.onnx import canonical
from converters.frontends.tflite.operators import READERS
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.recipe import PRESETS
from edgekit.errors import ModelFormatError
from edgekit.runtimes import open_runtime
from tests.converters.lowering.test_operators import CASES, joined
from tests.converters.test_models import MODELS, rows_of
from tests.simulators import small_models

pytestmark = pytest.mark.heavy

# Cases of the lowering whose files hold an operator that is not read.
UNREAD = {
    "thresholdedrelu", "where", "comparisons", "equal-and-cast", "mod", "lp-norm", "local-response", "argmax",
    "argmin-channels-kept", "top-k", "cumsum", "expand", "tile", "gather-elements", "depth-to-space",
    "depth-to-space-crd", "space-to-depth",
}  # fmt: skip
READ = [name for name, one in CASES.items() if one.opset == 17 and one.kind == "float32" and name not in UNREAD]
PARTS = 3

# What the lowering never writes, without a signature and with weights of half precision.
OTHERS = """
import sys
import tensorflow as tf
kernel = tf.random.stateless_normal((3, 3, 4, 4), (1, 2))
@tf.function(input_signature=[tf.TensorSpec((1, 6, 5, 4))])
def model(image):
    x = tf.nn.conv2d(image, kernel, 1, "SAME")
    x = tf.nn.relu(x) + tf.constant([-0.1, -0.2, 0.3, 0.4]) * (x - tf.abs(x)) * 0.5
    x = tf.image.resize(x, (12, 10), method="nearest")
    a, b = tf.split(x, [1, 3], axis=3)
    b = tf.maximum(tf.minimum(tf.slice(b, [0, 1, 2, 0], [1, 11, 8, 1]), 1.0), -1.0)
    s = tf.stack([a[:, 1:, 2:, 0], tf.squeeze(b, [3])], axis=1)
    return tf.expand_dims(s, 4)
converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()])
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.target_spec.supported_types = [tf.float16]
open(sys.argv[1], "wb").write(converter.convert())
"""


def tflite_of(child, graph, path):
    path.write_bytes(child.call("lower", model=graph.to_bytes()).data)
    return path


def require_parity(path, child):
    source = load_model(path, child)
    x = rows_of(source.graph, 3)
    expected, found = source.answers(x), source.graph.run(x)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-5, rtol=1e-4)
    return source


@pytest.mark.parametrize("name", MODELS)
def test_model_answers_as_its_file_does(name, child, tmp_path):
    """Whole networks as written by TensorFlow's converter."""
    source = require_parity(tflite_of(child, MODELS[name](), tmp_path / "model.tflite"), child)
    assert source.format == "tflite"


@pytest.mark.parametrize("part", range(PARTS))
def test_operators_answer_as_in_their_file(part, child, tmp_path):
    """All operators that the lowering writes and the reader supports, side by side in one file."""
    graph = canonical(joined(READ[part::PARTS]), "cases").with_batch(1)
    require_parity(tflite_of(child, graph, tmp_path / "model.tflite"), child)


# A process of its own starts TensorFlow to write the file: about 15 s.
def test_file_of_other_operators_in_half_precision_is_read(child, tmp_path):
    """Uneven splits, stacks and others; without a signature, tensor names are used."""
    path = tmp_path / "model.tflite"
    subprocess.run([sys.executable, "-c", OTHERS, str(path)], check=True, capture_output=True)
    assert {"DEQUANTIZE", "SPLIT_V", "RESIZE_NEAREST_NEIGHBOR", "PACK"} <= set(operators_of(path.read_bytes()))
    source = require_parity(path, child)
    assert [spec.name for spec in source.graph.inputs] == ["image"]


def test_unknown_operator_is_named(child, tmp_path):
    """The graph keeps the file for LiteRT, and names the operator and its layer."""
    graph = canonical(joined(["cumsum"]), "case").with_batch(1)
    opaque = load_model(tflite_of(child, graph, tmp_path / "model.tflite"), child).graph.opaque
    assert opaque.operator == "CUMSUM"
    assert opaque.layer == "PartitionedCall:0_0"  # the only name that the file holds


def test_quantized_file_is_refused(child, tmp_path):
    """The error names the quantized tensor and says what to convert instead."""
    path = tmp_path / "model.tflite"
    path.write_bytes(small_models.litert_model(quantized=True))
    with pytest.raises(ModelFormatError, match="quantized") as caught:
        load_model(path, child)
    assert "float model" in caught.value.advice


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_bundle_of_a_tflite_file_answers_as_the_file(runtime, child, tmp_path):
    """A bundle made from the file has the names of the file's signature and the same outputs."""
    path = tflite_of(child, MODELS["two-inputs"](), tmp_path / "model.tflite")
    plan = make_plan(
        path, ConversionOptions(targets=["raspberry-pi-4"], runtime=runtime, recipe=PRESETS["float32"], output=tmp_path)
    )
    [report] = run_plan(plan, child=child)
    folder = tmp_path / "model-1.0.0-raspberry-pi-4"
    assert report.bundle == str(folder)
    source = load_model(path, child)
    x = rows_of(source.graph, 1)
    bundle = open_runtime(parse_manifest((folder / MANIFEST_NAME).read_bytes()), folder)
    found = bundle.run(x)
    bundle.close()
    for name, values in source.answers(x).items():
        np.testing.assert_allclose(found[name], values, atol=2e-5)


def test_every_operator_that_is_read_has_a_name_in_the_schema():
    """A misspelled operator name would never match."""
    from converters.backends.tflite.reader import OPERATOR_NAMES

    assert set(READERS) <= set(OPERATOR_NAMES.values())
