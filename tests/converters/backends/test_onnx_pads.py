"""Zeros around the input of a MaxPool, which ONNX Runtime's optimizer takes for the padding of the pool."""

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from converters.backends import ConversionContext
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.backends.onnx_pads import unmerged_pads
from converters.backends.onnx_tensorrt import OnnxTensorRTBackend
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.graph.graph import Graph
from edgekit.bundle.recipe import Recipe
from edgekit.runtimes.onnx import OnnxRuntime
from tests.simulators.models import model_of

PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
BELOW_ZERO = -1 - np.random.default_rng(2).random((12, 2, 7, 7)).astype(np.float32)


def pooled(*, before=(), value=None):
    """A convolution that keeps its values, `before`, zeros or `value` around it, and a MaxPool."""
    source = before[-1].output[0] if before else "kept"
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["kept"], name="conv"),
        *before,
        helper.make_node("Pad", [source, "pads", *(["value"] if value is not None else [])], ["padded"], name="pad"),
        helper.make_node("MaxPool", ["padded"], ["y"], name="pool", kernel_shape=[3, 3], strides=[2, 2]),
    ]
    weights = {"w": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1), "pads": PADS}
    if value is not None:
        weights["value"] = np.float32(value)
    return model_of(nodes, {"x": ["n", 2, 7, 7]}, {"y": ["n", 2, 4, 4]}, weights)


def expected(values, fill=0.0):
    wide = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(2, 3))
    return windows[:, :, ::2, ::2].max(axis=(4, 5))


def test_runtime_pads_with_zeros():
    """Zeros around negative values are the largest values of their windows."""
    runtime = OnnxRuntime(pooled().SerializeToString())
    np.testing.assert_array_equal(runtime.run({"x": BELOW_ZERO})["y"], expected(BELOW_ZERO))


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("float32", OnnxCpuBackend), ("int8", OnnxCpuBackend), ("int8-weights", OnnxCpuBackend),
        ("float32", OnnxTensorRTBackend), ("float16", OnnxTensorRTBackend),
    ],
)  # fmt: skip
def test_artifact_is_right_in_a_runtime_with_all_optimizers(kind, backend, tmp_path):
    """Files for ONNX Runtime answer rightly in a session as anybody opens it, in each precision."""
    graph = canonical(pooled(), "test")
    samples = Samples({"x": np.concatenate([BELOW_ZERO] * 4)})
    context = ConversionContext(graph, graph.with_batch(1), samples, TensorFlowProcess(), tmp_path)
    data = backend(context).build(Recipe(kind)).data
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options)
    [answers] = session.run(None, {session.get_inputs()[0].name: BELOW_ZERO[:1]})
    np.testing.assert_allclose(answers, expected(BELOW_ZERO[:1]), atol=0.02 if "int8" in kind else 1e-3)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (pooled(), True),
        (pooled(value=0.0), True),
        (pooled(value=-1.0), False),
        (pooled(value=-np.inf), False),
        (pooled(before=[helper.make_node("Relu", ["kept"], ["positive"], name="relu")]), False),
    ],
)
def test_only_pads_that_would_be_merged_change(model, changes):
    """Other values, and zeros around values that are never negative, stay as they are."""
    graph = Graph(model)
    assert (unmerged_pads(graph) is not graph) == changes
