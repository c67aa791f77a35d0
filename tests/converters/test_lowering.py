# ruff: noqa: E501 - the table of cases reads best with one case a line
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from converters.frontends.onnx import canonical
from edgekit.errors import UnsupportedOpError
from edgekit.manifest import Binding
from edgekit.runtimes import LogicalRuntime
from edgekit.runtimes.litert import LiteRTRuntime
from tests.simulators import models

pytestmark = pytest.mark.heavy
RNG = np.random.default_rng(8)


def weights(*shape):
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def node(op, inputs=("x",), output="y", **attributes):
    return helper.make_node(op, list(inputs), [output], name=op.lower(), **attributes)


def ints(*values):
    return np.array(values, dtype=np.int64)


IMAGE = [1, 4, 9, 8]
# name: (nodes, input shape, output shape, weights); batch 1 stands for the free batch
CASES = {
    "conv-same-stride": ([node("Conv", ("x", "w", "b"), pads=[0, 0, 1, 1], strides=[2, 2], kernel_shape=[3, 3])], IMAGE, [1, 6, 4, 4], {"w": weights(6, 4, 3, 3), "b": weights(6)}),
    "conv-explicit-pads": ([node("Conv", ("x", "w"), pads=[2, 1, 2, 1])], IMAGE, [1, 6, 11, 8], {"w": weights(6, 4, 3, 3)}),
    "conv-dilated": ([node("Conv", ("x", "w"), dilations=[2, 2])], IMAGE, [1, 6, 5, 4], {"w": weights(6, 4, 3, 3)}),
    "conv-same-lower": ([node("Conv", ("x", "w"), auto_pad="SAME_LOWER", strides=[2, 2])], IMAGE, [1, 6, 5, 4], {"w": weights(6, 4, 3, 3)}),
    "conv-grouped": ([node("Conv", ("x", "w"), group=2)], IMAGE, [1, 6, 7, 6], {"w": weights(6, 2, 3, 3)}),
    "conv-depthwise": ([node("Conv", ("x", "w"), group=4, pads=[1, 1, 1, 1])], IMAGE, [1, 8, 9, 8], {"w": weights(8, 1, 3, 3)}),
    "conv-depthwise-uneven-strides": ([node("Conv", ("x", "w"), group=4, strides=[1, 2])], IMAGE, [1, 4, 7, 3], {"w": weights(4, 1, 3, 3)}),
    "max-pool": ([node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])], IMAGE, [1, 4, 4, 4], {}),
    "max-pool-padded": ([node("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], IMAGE, [1, 4, 5, 4], {}),
    "average-pool": ([node("AveragePool", kernel_shape=[2, 2], strides=[2, 2])], IMAGE, [1, 4, 4, 4], {}),
    "average-pool-same": ([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], IMAGE, [1, 4, 9, 8], {}),
    "average-pool-counting-pads": ([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], IMAGE, [1, 4, 9, 8], {}),
    "global-average-pool": ([node("GlobalAveragePool")], IMAGE, [1, 4, 1, 1], {}),
    "reduce-mean": ([node("ReduceMean", axes=[2, 3], keepdims=0)], IMAGE, [1, 4], {}),
    "reduce-mean-of-channels-after-conv": ([node("Conv", ("x", "w"), "c"), node("ReduceMean", ("c",), axes=[1], keepdims=0)], IMAGE, [1, 9, 8], {"w": weights(6, 4, 1, 1)}),
    "relu": ([node("Relu")], IMAGE, IMAGE, {}),
    "relu6": ([node("Clip", ("x", "lo", "hi"))], IMAGE, IMAGE, {"lo": np.float32(0), "hi": np.float32(6)}),
    "clip": ([node("Clip", ("x", "lo", "hi"))], IMAGE, IMAGE, {"lo": np.float32(-0.5), "hi": np.float32(0.25)}),
    "clip-above-only": ([node("Clip", ("x", "", "hi"))], IMAGE, IMAGE, {"hi": np.float32(0.25)}),
    "sigmoid": ([node("Sigmoid")], IMAGE, IMAGE, {}),
    "softmax-last": ([node("Softmax", axis=-1)], [1, 7], [1, 7], {}),
    "softmax-channels": ([node("Conv", ("x", "w"), "c"), node("Softmax", ("c",), axis=1)], IMAGE, [1, 6, 9, 8], {"w": weights(6, 4, 1, 1)}),
    "softmax-rows": ([node("Softmax", axis=2)], IMAGE, IMAGE, {}),
    "add-channel-constant": ([node("Conv", ("x", "w"), "c"), node("Add", ("c", "k"))], IMAGE, [1, 6, 9, 8], {"w": weights(6, 4, 1, 1), "k": weights(6, 1, 1)}),
    "add-across-layouts": ([node("Conv", ("x", "w"), "c"), node("Add", ("x", "c"))], IMAGE, IMAGE, {"w": weights(4, 4, 1, 1)}),
    "mul-sub-div": ([node("Mul", ("x", "k"), "m"), node("Sub", ("k", "m"), "s"), node("Div", ("s", "k"))], IMAGE, IMAGE, {"k": weights(4, 1, 1) + 3}),
    "batch-norm": ([node("Relu", output="r"), node("BatchNormalization", ("r", "g", "b", "m", "v"))], IMAGE, IMAGE, {"g": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2 + 0.5}),
    "gemm-transposed": ([node("Gemm", ("x", "w", "b"), transB=1, alpha=0.5, beta=2.0)], [1, 5], [1, 3], {"w": weights(3, 5), "b": weights(3)}),
    "matmul-bias": ([node("MatMul", ("x", "w"), "m"), node("Add", ("m", "b"))], [1, 5], [1, 3], {"w": weights(5, 3), "b": weights(3)}),
    "flatten-after-conv": ([node("Conv", ("x", "w"), "c"), node("Flatten", ("c",), "f"), node("Gemm", ("f", "d"))], IMAGE, [1, 2], {"w": weights(6, 4, 3, 3), "d": weights(6 * 7 * 6, 2)}),
    "reshape": ([node("Reshape", ("x", "s"))], IMAGE, [1, 36, 8], {"s": ints(0, -1, 8)}),
    "transpose-there-and-back": ([node("Transpose", output="t", perm=[0, 3, 1, 2]), node("Conv", ("t", "w"), "c"), node("Transpose", ("c",), perm=[0, 2, 3, 1])], [1, 9, 8, 4], [1, 9, 8, 6], {"w": weights(6, 4, 1, 1)}),
    "transpose-for-real": ([node("Transpose", perm=[0, 2, 1])], [1, 3, 5], [1, 5, 3], {}),
    "squeeze-unsqueeze": ([node("GlobalAveragePool", output="p"), node("Squeeze", ("p", "a"), "s"), node("Unsqueeze", ("s", "u"))], IMAGE, [1, 1, 4], {"a": ints(2, 3), "u": ints(1)}),
    "concat-channels": ([node("Conv", ("x", "w"), "c"), node("Concat", ("c", "x"), axis=1)], IMAGE, [1, 10, 9, 8], {"w": weights(6, 4, 1, 1)}),
    "pad": ([node("Pad", ("x", "p", "v"))], IMAGE, [1, 4, 12, 9], {"p": ints(0, 0, 1, 0, 0, 0, 2, 1), "v": np.float32(0.5)}),
    "constant-node": ([helper.make_node("Constant", [], ["k"], value=models.numpy_helper.from_array(weights(1, 4, 1, 1))), node("Mul", ("x", "k"))], IMAGE, IMAGE, {}),
    "identity": ([node("Identity")], IMAGE, IMAGE, {}),
}  # fmt: skip


def lowered(child, folder: Path, model):
    """The model as .tflite behind its logical interface, with the operators that run."""
    graph = canonical(model, "test")
    result = child.call("lower", model=graph.to_bytes())
    path = folder / "m.tflite"
    path.write_bytes(result.data)
    raw = LiteRTRuntime(path)
    operators = [entry["op_name"] for entry in raw._interpreter._get_ops_details()]
    inputs = [
        Binding(spec, raw.inputs[i], permute)
        for i, (spec, permute) in enumerate(zip(graph.logical_inputs, result.input_permutes, strict=True))
    ]
    outputs = [
        Binding(spec, raw.outputs[i], permute)
        for i, (spec, permute) in enumerate(zip(graph.logical_outputs, result.output_permutes, strict=True))
    ]
    return graph, LogicalRuntime(raw, inputs, outputs), operators


@pytest.mark.parametrize("name", CASES)
def test_operator_answers_as_in_onnx(name, child, tmp_path):
    """Each operator, lowered to LiteRT, gives what ONNX Runtime gives."""
    nodes, shape, result, constants = CASES[name]
    model = models.model_of(nodes, {"x": ["batch", *shape[1:]]}, {"y": ["batch", *result[1:]]}, constants)
    graph, runtime, _ = lowered(child, tmp_path, model)
    x = np.random.default_rng(2).normal(0, 2, (2, *shape[1:])).astype(np.float32)
    np.testing.assert_allclose(runtime.run({"x": x})["y"], graph.run({"x": x})["y"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["channel-first", "channel-last"])
def test_no_transpose_is_left_in_an_image_network(layout, child, tmp_path):
    """Whichever layout the source has, the artifact is channel-last throughout and runs on one delegate."""
    image, perm = ([4, 9, 8], None) if layout == "channel-first" else ([9, 8, 4], [0, 3, 1, 2])
    nodes = [node("Transpose", output="t", perm=perm)] if perm else [node("Identity", output="t")]
    nodes += [
        node("Conv", ("t", "w"), "c", pads=[1, 1, 1, 1]),
        node("Relu", ("c",), "r"),
        node("Add", ("t", "r"), "a"),
        node("GlobalAveragePool", ("a",), "p"),
        node("Flatten", ("p",), "f"),
        node("Gemm", ("f", "d"), "y"),
    ]
    constants = {"w": weights(4, 4, 3, 3), "d": weights(4, 3)}
    model = models.model_of(nodes, {"x": ["batch", *image]}, {"y": ["batch", 3]}, constants)
    from converters.passes import Simplify, run_pass

    simple = run_pass(Simplify(), canonical(model, "test")).graph.model
    graph, runtime, operators = lowered(child, tmp_path, simple)
    x = np.random.default_rng(2).normal(0, 1, (2, *image)).astype(np.float32)
    np.testing.assert_allclose(runtime.run({"x": x})["y"], graph.run({"x": x})["y"], atol=1e-5)
    assert "TRANSPOSE" not in operators
    assert operators.count("DELEGATE") == 1
    assert "MEAN" in operators


def test_use_of_an_operator_that_cannot_be_lowered_says_why(child, tmp_path):
    """A known operator used in an unknown way names the layer, and the advice names the obstacle."""
    nodes = [node("MaxPool", kernel_shape=[2, 2], ceil_mode=1)]
    model = models.model_of(nodes, {"x": ["batch", 4, 9, 9]}, {"y": ["batch", 4, 8, 8]})
    with pytest.raises(UnsupportedOpError) as caught:
        lowered(child, tmp_path, model)
    assert caught.value.layer == "maxpool"
    assert "ceil_mode" in caught.value.advice
