# ruff: noqa: E501 - the table of cases reads best with one case a line
"""Each operator, lowered to LiteRT, against ONNX Runtime.

Many operators share one conversion, side by side in one graph, since a conversion costs the same for one or for many.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converters.frontends.onnx import canonical
from converters.graph.graph import Graph
from edgekit.runtimes import LogicalRuntime
from edgekit.runtimes.litert import LiteRTRuntime
from tests.converters.lowering.lowered import bindings_of

pytestmark = pytest.mark.heavy
RNG = np.random.default_rng(8)
IMAGE = [1, 4, 9, 8]
SIGNAL = [1, 4, 11]
ROWS = [1, 6, 8]
GROUP = 25


@dataclass(frozen=True)
class Case:
    """Nodes from x (and inputs `more`) to y (and outputs `also`); a first axis of 1 is the batch."""

    nodes: list
    x: list
    y: list
    w: dict = field(default_factory=dict)
    opset: int = 17
    more: dict = field(default_factory=dict)
    also: dict = field(default_factory=dict)
    kind: str = "float32"
    answer: str = "float32"
    below: int = 2


def case(*args, **options):
    return Case(*args, **options)


def weights(*shape):
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def node(op, inputs=("x",), output="y", **attributes):
    outputs = [output] if isinstance(output, str) else list(output)
    return helper.make_node(op, list(inputs), outputs, name=op.lower(), **attributes)


def ints(*values):
    return np.array(values, dtype=np.int64)


def positive(op, **attributes):
    """`op` applied to positive numbers."""
    return [node("Abs", output="a"), node("Add", ("a", "half"), "p"), node(op, ("p",), **attributes)]


HALF = {"half": np.float32(0.5)}


def bits(kind, to):
    """Operators on the bits of large numbers of both signs, made of x, as far as `kind` has them."""
    held = {
        "large": np.float32(2 ** (np.iinfo(kind).bits - 4 if kind != "uint64" else 58)),
        "low": np.array(0x3F if kind == "int8" else 0x7F, kind),
        "mask": np.array(0x5A, kind) * np.array(1 if np.iinfo(kind).bits == 8 else 0x0101, kind),
        **{f"by{amount}": np.array(amount, kind) for amount in (1, 3, np.iinfo(kind).bits - 7)},
    }
    nodes = [
        node("Mul", ("x", "large"), "l"),
        node("Cast", ("l",), "s", to=onnx.TensorProto.INT64),
        node("Cast", ("s",), "i", to=to),
        node("BitwiseNot", ("i",), "o0"),
        node("BitwiseAnd", ("i", "low"), "o1"),
        node("BitwiseAnd", ("mask", "i"), "o2"),
        node("BitwiseOr", ("i", "mask"), "o3"),
        node("BitwiseXor", ("o0", "o3"), "o4"),
        node("BitwiseAnd", ("o3", "o4"), "o5"),
    ]
    if kind.startswith("u") and kind != "uint16":  # which ONNX Runtime does not shift
        for amount in (1, 3, np.iinfo(kind).bits - 7):
            for way in ("LEFT", "RIGHT"):
                nodes.append(node("BitShift", ("i", f"by{amount}"), f"o{len(nodes)}", direction=way))
    outputs = [name for one in nodes[3:] for name in one.output]
    wide = [node("Cast", (name,), f"w{name}", to=onnx.TensorProto.INT64) for name in outputs]
    # float32 has 24 bits: the rests of divisions show all of them
    rests = [
        node("Mod", (f"w{name}", rest), f"{rest}{name}") for name in outputs for rest in ("first", "second", "third")
    ]
    floats = [node("Cast", (one.output[0],), f"f{one.output[0]}", to=1) for one in rests]
    primes = {"first": ints(8388593), "second": ints(8388587), "third": ints(8388581)}
    nodes += [*wide, *rests, *floats, node("Concat", [one.output[0] for one in floats], axis=2)]
    return case(nodes, ROWS, [1, 6, 8 * len(floats)], {**held, **primes}, opset=18)


def recurrent(op, gates, *, steps=5, hidden=3, width=4, ways=1, states=1, lengths=False, **attributes):
    """A recurrent layer over x (1, steps, width) with all its outputs, as exporters write it.

    With `lengths` each sequence ends where the answer to the input says, as in PyTorch's packed sequences.
    """
    names = ["w", "r", "b", *["n"] * lengths]
    ends = [
        node("ArgMax", output="i", axis=1, keepdims=0),
        node("ReduceMin", ("i",), "m", axes=[1], keepdims=0),
        node("Add", ("m", "one"), "o"),
        node("Cast", ("o",), "n", to=onnx.TensorProto.INT32),
    ]
    nodes = [
        *ends * lengths,
        node("Transpose", output="t", perm=[1, 0, 2]),
        node(op, ("t", *names), ["s", "h", "c"][: 1 + states], hidden_size=hidden, **attributes),
        node("Transpose", ("s",), "y", perm=[2, 0, 1, 3]),
        node("Transpose", ("h",), "last", perm=[1, 0, 2]),
    ]
    held = {
        "w": weights(ways, gates * hidden, width),
        "r": weights(ways, gates * hidden, hidden),
        "b": weights(ways, 2 * gates * hidden),
        "one": ints(1),
    }
    return case(nodes, [1, steps, width], [1, steps, ways, hidden], held, also={"last": [1, ways, hidden]})


# How exporters write the gelu.
GELU = [
    node("Div", ("x", "root"), "d"),
    node("Erf", ("d",), "e"),
    node("Add", ("e", "one"), "p"),
    node("Mul", ("x", "p"), "m"),
    node("Mul", ("m", "half")),
]
GELU_FIRST_HALF = [
    node("Mul", ("x", "half"), "h"),
    node("Mul", ("x", "inverse"), "d"),
    node("Erf", ("d",), "e"),
    node("Add", ("e", "one"), "p"),
    node("Mul", ("h", "p")),
]
GELU_COMPLEMENT = [
    node("Neg", output="n"),
    node("Mul", ("n", "inverse"), "d"),
    node("Erf", ("d",), "e"),
    node("Sub", ("one", "e"), "p"),
    node("Mul", ("x", "half"), "h"),
    node("Mul", ("h", "p")),
]
GELU_TANH = [
    node("Pow", ("x", "three"), "c"),
    node("Mul", ("c", "k"), "d"),
    node("Add", ("x", "d"), "s"),
    node("Mul", ("s", "scale"), "t"),
    node("Tanh", ("t",), "u"),
    node("Add", ("one", "u"), "v"),
    node("Mul", ("x", "half"), "h"),
    node("Mul", ("h", "v")),
]
SCALARS = {
    "root": np.float32(2**0.5),
    "inverse": np.float32(0.5**0.5),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "k": np.float32(0.044715),
    "scale": np.float32((2 / np.pi) ** 0.5),
}

CASES = {
    "conv-computed-weights": case([node("GlobalAveragePool", ("x",), "p"), node("Reshape", ("p", "flat"), "f"), node("MatMul", ("f", "m"), "k"), node("Reshape", ("k", "s"), "w"), node("MatMul", ("f", "n"), "c"), node("Reshape", ("c", "t"), "b"), node("Conv", ("x", "w", "b"), group=2, pads=[1, 0, 1, 0])], IMAGE, [1, 6, 9, 6], {"flat": ints(1, 4), "m": weights(4, 108), "s": ints(6, 2, 3, 3), "n": weights(4, 6), "t": ints(6)}),
    "conv-computed-depthwise": case([node("GlobalAveragePool", ("x",), "p"), node("Reshape", ("p", "flat"), "f"), node("MatMul", ("f", "m"), "k"), node("Reshape", ("k", "s"), "w"), node("Conv", ("x", "w"), group=4)], IMAGE, [1, 4, 7, 6], {"flat": ints(1, 4), "m": weights(4, 36), "s": ints(4, 1, 3, 3)}),
    "conv-same-stride": case([node("Conv", ("x", "w", "b"), pads=[0, 0, 1, 1], strides=[2, 2], kernel_shape=[3, 3])], IMAGE, [1, 6, 4, 4], {"w": weights(6, 4, 3, 3), "b": weights(6)}),
    "conv-explicit-pads": case([node("Conv", ("x", "w"), pads=[2, 1, 2, 1])], IMAGE, [1, 6, 11, 8], {"w": weights(6, 4, 3, 3)}),
    "conv-dilated": case([node("Conv", ("x", "w"), dilations=[2, 2])], IMAGE, [1, 6, 5, 4], {"w": weights(6, 4, 3, 3)}),
    "conv-same-lower": case([node("Conv", ("x", "w"), auto_pad="SAME_LOWER", strides=[2, 2])], IMAGE, [1, 6, 5, 4], {"w": weights(6, 4, 3, 3)}),
    "mean-variance-normalization": case([node("MeanVarianceNormalization", axes=[2, 3])], IMAGE, IMAGE),
    "lp-pool": case([node("LpPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0], p=2)], IMAGE, [1, 4, 5, 4]),
    "lp-pool-3": case([node("LpPool", kernel_shape=[2, 2], p=3)], IMAGE, [1, 4, 8, 7]),
    "global-lp-pool": case([node("GlobalLpPool", p=1)], IMAGE, [1, 4, 1, 1]),
    "conv-volume": case([node("Conv", ("x", "w", "b"), pads=[1, 0, 1, 0, 1, 1], strides=[2, 1, 2], dilations=[1, 2, 1])], [1, 4, 7, 6, 8], [1, 6, 3, 3, 4], {"w": weights(6, 4, 3, 3, 3), "b": weights(6)}),
    "conv-volume-grouped": case([node("Conv", ("x", "w"), group=2, auto_pad="SAME_LOWER", strides=[1, 2, 1])], [1, 4, 5, 6, 8], [1, 6, 5, 3, 8], {"w": weights(6, 2, 2, 3, 1)}),
    "max-pool-volume": case([node("MaxPool", kernel_shape=[3, 2, 3], strides=[2, 2, 1], pads=[1, 0, 1, 1, 0, 1])], [1, 4, 7, 6, 8], [1, 4, 4, 3, 8]),
    "average-pool-volume": case([node("AveragePool", kernel_shape=[2, 2, 2], strides=[1, 2, 2], pads=[1, 0, 0, 0, 0, 0], count_include_pad=1)], [1, 4, 5, 6, 8], [1, 4, 5, 3, 4]),
    "global-pool-volume": case([node("GlobalAveragePool")], [1, 4, 5, 6, 8], [1, 4, 1, 1, 1]),
    "conv-grouped": case([node("Conv", ("x", "w"), group=2)], IMAGE, [1, 6, 7, 6], {"w": weights(6, 2, 3, 3)}),
    "conv-depthwise": case([node("Conv", ("x", "w"), group=4, pads=[1, 1, 1, 1])], IMAGE, [1, 8, 9, 8], {"w": weights(8, 1, 3, 3)}),
    "conv-depthwise-uneven-strides": case([node("Conv", ("x", "w"), group=4, strides=[1, 2])], IMAGE, [1, 4, 7, 3], {"w": weights(4, 1, 3, 3)}),
    "max-pool": case([node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])], IMAGE, [1, 4, 4, 4]),
    "max-pool-padded": case([node("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], IMAGE, [1, 4, 5, 4]),
    "average-pool": case([node("AveragePool", kernel_shape=[2, 2], strides=[2, 2])], IMAGE, [1, 4, 4, 4]),
    "average-pool-same": case([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], IMAGE, [1, 4, 9, 8]),
    "average-pool-counting-pads": case([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], IMAGE, [1, 4, 9, 8]),
    "global-average-pool": case([node("GlobalAveragePool")], IMAGE, [1, 4, 1, 1]),
    "reduce-mean": case([node("ReduceMean", axes=[2, 3], keepdims=0)], IMAGE, [1, 4]),
    "reduce-mean-of-channels-after-conv": case([node("Conv", ("x", "w"), "c"), node("ReduceMean", ("c",), axes=[1], keepdims=0)], IMAGE, [1, 9, 8], {"w": weights(6, 4, 1, 1)}),
    "relu": case([node("Relu")], IMAGE, IMAGE),
    "relu6": case([node("Clip", ("x", "lo", "hi"))], IMAGE, IMAGE, {"lo": np.float32(0), "hi": np.float32(6)}),
    "clip": case([node("Clip", ("x", "lo", "hi"))], IMAGE, IMAGE, {"lo": np.float32(-0.5), "hi": np.float32(0.25)}),
    "clip-above-only": case([node("Clip", ("x", "", "hi"))], IMAGE, IMAGE, {"hi": np.float32(0.25)}),
    "sigmoid": case([node("Sigmoid")], IMAGE, IMAGE),
    "softmax-last": case([node("Softmax", axis=-1)], [1, 7], [1, 7]),
    "softmax-channels": case([node("Conv", ("x", "w"), "c"), node("Softmax", ("c",), axis=1)], IMAGE, [1, 6, 9, 8], {"w": weights(6, 4, 1, 1)}),
    "softmax-rows": case([node("Softmax", axis=2)], IMAGE, IMAGE),
    "add-channel-constant": case([node("Conv", ("x", "w"), "c"), node("Add", ("c", "k"))], IMAGE, [1, 6, 9, 8], {"w": weights(6, 4, 1, 1), "k": weights(6, 1, 1)}),
    "add-across-layouts": case([node("Conv", ("x", "w"), "c"), node("Add", ("x", "c"))], IMAGE, IMAGE, {"w": weights(4, 4, 1, 1)}),
    "mul-sub-div": case([node("Mul", ("x", "k"), "m"), node("Sub", ("k", "m"), "s"), node("Div", ("s", "k"))], IMAGE, IMAGE, {"k": weights(4, 1, 1) + 3}),
    "batch-norm": case([node("Relu", output="r"), node("BatchNormalization", ("r", "g", "b", "m", "v"))], IMAGE, IMAGE, {"g": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2 + 0.5}),
    "gemm-transposed": case([node("Gemm", ("x", "w", "b"), transB=1, alpha=0.5, beta=2.0)], [1, 5], [1, 3], {"w": weights(3, 5), "b": weights(3)}),
    "matmul-bias": case([node("MatMul", ("x", "w"), "m"), node("Add", ("m", "b"))], [1, 5], [1, 3], {"w": weights(5, 3), "b": weights(3)}),
    "flatten-after-conv": case([node("Conv", ("x", "w"), "c"), node("Flatten", ("c",), "f"), node("Gemm", ("f", "d"))], IMAGE, [1, 2], {"w": weights(6, 4, 3, 3), "d": weights(6 * 7 * 6, 2)}),
    "reshape": case([node("Reshape", ("x", "s"))], IMAGE, [1, 36, 8], {"s": ints(0, -1, 8)}),
    "transpose-there-and-back": case([node("Transpose", output="t", perm=[0, 3, 1, 2]), node("Conv", ("t", "w"), "c"), node("Transpose", ("c",), perm=[0, 2, 3, 1])], [1, 9, 8, 4], [1, 9, 8, 6], {"w": weights(6, 4, 1, 1)}),
    "transpose-for-real": case([node("Transpose", perm=[0, 2, 1])], [1, 3, 5], [1, 5, 3]),
    "squeeze-unsqueeze": case([node("GlobalAveragePool", output="p"), node("Squeeze", ("p", "a"), "s"), node("Unsqueeze", ("s", "u"))], IMAGE, [1, 1, 4], {"a": ints(2, 3), "u": ints(1)}),
    "concat-channels": case([node("Conv", ("x", "w"), "c"), node("Concat", ("c", "x"), axis=1)], IMAGE, [1, 10, 9, 8], {"w": weights(6, 4, 1, 1)}),
    "pad": case([node("Pad", ("x", "p", "v"))], IMAGE, [1, 4, 12, 9], {"p": ints(0, 0, 1, 0, 0, 0, 2, 1), "v": np.float32(0.5)}),
    "pad-around": case([node("Pad", ("x", "p"), mode="wrap")], IMAGE, [1, 9, 12, 9], {"p": ints(0, 5, 1, 0, 0, 0, 2, 1)}, opset=19),
    "constant-node": case([helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weights(1, 4, 1, 1))), node("Mul", ("x", "k"))], IMAGE, IMAGE),
    "identity": case([node("Identity")], IMAGE, IMAGE),
    # activations
    **{op.lower(): case([node(op)], IMAGE, IMAGE) for op in ("Tanh", "Neg", "Abs", "Exp", "Floor", "Ceil", "Round", "Sin", "Cos", "Sign", "Erf", "Softplus", "Softsign", "HardSwish", "LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid", "ThresholdedRelu")},
    **{op.lower(): case(positive(op), IMAGE, IMAGE, HALF) for op in ("Sqrt", "Log", "Reciprocal")},
    "leaky-relu-slope": case([node("LeakyRelu", alpha=0.3)], IMAGE, IMAGE),
    "elu-alpha": case([node("Elu", alpha=0.5)], IMAGE, IMAGE),
    "celu-alpha": case([node("Celu", alpha=0.5)], IMAGE, IMAGE),
    "hard-sigmoid": case([node("HardSigmoid")], IMAGE, IMAGE),
    "hard-sigmoid-falling": case([node("HardSigmoid", alpha=-0.3)], IMAGE, IMAGE),
    "hard-sigmoid-of-pytorch": case([node("HardSigmoid", alpha=1 / 6)], IMAGE, IMAGE),
    "prelu": case([node("PRelu", ("x", "s"))], IMAGE, IMAGE, {"s": weights(4, 1, 1)}),
    "mish": case([node("Mish")], IMAGE, IMAGE, opset=18),
    "gelu": case([node("Gelu")], ROWS, ROWS, opset=20),
    "gelu-tanh": case([node("Gelu", approximate="tanh")], ROWS, ROWS, opset=20),
    "gelu-written-out": case(GELU, ROWS, ROWS, SCALARS),
    "gelu-written-half-first": case(GELU_FIRST_HALF, ROWS, ROWS, SCALARS),
    "gelu-written-with-complement": case(GELU_COMPLEMENT, ROWS, ROWS, SCALARS),
    "gelu-written-with-tanh": case(GELU_TANH, ROWS, ROWS, SCALARS),
    "nearly-a-gelu": case(GELU, ROWS, ROWS, {**SCALARS, "half": np.float32(0.51)}),
    "dropout": case([node("Dropout")], IMAGE, IMAGE),
    "log-softmax": case([node("LogSoftmax", axis=1)], IMAGE, IMAGE),
    # arithmetic
    "pow-2": case([node("Pow", ("x", "k"))], ROWS, ROWS, {"k": np.float32(2)}),
    "pow-3": case([node("Pow", ("x", "k"))], ROWS, ROWS, {"k": np.float32(3)}),
    "pow-half": case([node("Abs", output="a"), node("Pow", ("a", "k"))], ROWS, ROWS, {"k": np.float32(0.5)}),
    "pow-odd": case([node("Abs", output="a"), node("Pow", ("a", "k"))], ROWS, ROWS, {"k": np.float32(1.7)}),
    "min-max-of-three": case([node("Min", ("x", "k", "l"), "m"), node("Max", ("m", "n"))], IMAGE, IMAGE, {"k": weights(4, 1, 1), "l": weights(8), "n": np.float32(-0.2)}),
    "sum-mean": case([node("Sum", ("x", "k", "x"), "s"), node("Mean", ("s", "k"))], IMAGE, IMAGE, {"k": weights(4, 1, 1)}),
    "where": case([node("Greater", ("x", "k"), "g"), node("Not", ("g",), "n"), node("Where", ("n", "x", "k"))], IMAGE, IMAGE, {"k": weights(4, 1, 1)}),
    "comparisons": case([node("Less", ("x", "k"), "a"), node("GreaterOrEqual", ("x", "l"), "b"), node("And", ("a", "b"), "c"), node("LessOrEqual", ("x", "n"), "d"), node("Or", ("c", "d"), "e"), node("Xor", ("e", "a"), "f"), node("Cast", ("f",), to=1)], IMAGE, IMAGE, {"k": np.float32(1), "l": np.float32(-1), "n": np.float32(-2)}),
    "equal-and-cast": case([node("Cast", output="i", to=6), node("Equal", ("i", "k"), "e"), node("Cast", ("e",), to=1)], ROWS, ROWS, {"k": np.int32(1)}),
    "infinite-quotients": case([node("Div", ("x", "k"), "d"), node("IsInf", ("d",), "i", detect_negative=0), node("Equal", ("d", "l"), "e"), node("Where", ("i", "one", "x"), "w"), node("Where", ("e", "m", "w"))], ROWS, ROWS, {"k": np.array([0, 1, -0.0, 2, 0, 0, 1, 1], np.float32), "l": np.array([-np.inf] * 6 + [1, np.inf], np.float32), "m": np.float32(-1), "one": np.float32(1)}),
    "mod": case([node("Cast", output="i", to=6), node("Mod", ("i", "k"), "m"), node("Cast", ("m",), to=1)], ROWS, ROWS, {"k": np.int32(3)}),
    **{f"bits-of-{kind}": bits(kind, to) for kind, to in (("int8", 3), ("int32", 6), ("int64", 7), ("uint8", 2), ("uint16", 4), ("uint32", 12), ("uint64", 13))},
    "index-of-int64": case([node("Mul", ("x", "k"), "m"), node("Cast", ("m",), "i", to=7), node("ArgMax", ("i",), "a", axis=2, keepdims=1), node("ArgMin", ("i",), "b", axis=2, keepdims=1, select_last_index=1), node("Concat", ("a", "b"), "c", axis=2), node("Cast", ("c",), to=1)], ROWS, [1, 6, 2], {"k": np.float32(2)}),
    # dense
    "gemm-of-two-inputs": case([node("Gemm", ("x", "o"), transB=1, alpha=0.5)], [1, 5], [1, 1], more={"o": [1, 5]}),
    "gemm-no-bias": case([node("Gemm", ("x", "w"))], [1, 5], [1, 3], {"w": weights(5, 3)}),
    "gemm-broad-bias": case([node("Gemm", ("x", "w", "b"))], [1, 5], [1, 3], {"w": weights(5, 3), "b": weights(1)}),
    "matmul-rows": case([node("MatMul", ("x", "w"))], ROWS, [1, 6, 3], {"w": weights(8, 3)}),
    "matmul-stacked": case([node("MatMul", ("x", "w"))], [1, 2, 6, 8], [1, 2, 6, 3], {"w": weights(2, 8, 3)}),
    "matmul-left-constant": case([node("MatMul", ("w", "x"))], ROWS, [1, 3, 8], {"w": weights(3, 6)}),
    "matmul-vector": case([node("MatMul", ("x", "w"))], ROWS, [1, 6], {"w": weights(8)}),
    "einsum": case([node("Einsum", ("x", "o"), equation="bqd,bkd->bqk")], ROWS, [1, 6, 6], more={"o": ROWS}),
    "einsum-dots": case([node("Einsum", ("x", "w"), equation="...d,dk->...k")], ROWS, [1, 6, 3], {"w": weights(8, 3)}),
    "einsum-order": case([node("Einsum", ("x", "w"), equation="bqd,kd->bkq")], ROWS, [1, 3, 6], {"w": weights(3, 8)}),
    "einsum-sums": case([node("Einsum", ("x", "o"), equation="bqd,bqd->b")], ROWS, [1], more={"o": ROWS}),
    "einsum-outer": case([node("Einsum", ("x", "w"), equation="bqd,k->bqk")], ROWS, [1, 6, 3], {"w": weights(3)}),
    "attention": case(
        [node("MatMul", ("x", "wq"), "q"), node("MatMul", ("x", "wk"), "k"), node("Reshape", ("q", "heads"), "q4"), node("Reshape", ("k", "heads"), "k4"), node("Transpose", ("q4",), "qt", perm=[0, 2, 1, 3]), node("Transpose", ("k4",), "kt", perm=[0, 2, 3, 1]),
         node("MatMul", ("qt", "kt"), "s"), node("Softmax", ("s",), "p", axis=-1), node("MatMul", ("p", "qt"), "o"), node("Transpose", ("o",), "ot", perm=[0, 2, 1, 3]), node("Reshape", ("ot", "flat"))],
        ROWS, ROWS, {"wq": weights(8, 8), "wk": weights(8, 8), "heads": ints(0, 0, 2, 4), "flat": ints(0, 0, 8)}),
    # normalizations
    "layer-norm": case([node("LayerNormalization", ("x", "g", "b"))], ROWS, ROWS, {"g": weights(8), "b": weights(8)}),
    "layer-norm-two-axes": case([node("LayerNormalization", ("x", "g"), axis=1)], ROWS, ROWS, {"g": weights(6, 8)}),
    "instance-norm": case([node("InstanceNormalization", ("x", "g", "b"))], IMAGE, IMAGE, {"g": weights(4), "b": weights(4)}),
    "group-norm": case([node("GroupNormalization", ("x", "g", "b"), num_groups=2)], IMAGE, IMAGE, {"g": weights(4), "b": weights(4)}, opset=21),
    "rms-norm": case([node("RMSNormalization", ("x", "g"))], ROWS, ROWS, {"g": weights(8)}, opset=23),
    "lp-norm": case([node("LpNormalization", axis=2)], ROWS, ROWS),
    "local-response": case([node("LRN", size=3, alpha=0.1)], IMAGE, IMAGE),
    # reductions
    **{op.lower(): case([node(op, axes=[1], keepdims=0)], ROWS, [1, 8]) for op in ("ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd", "ReduceLogSumExp")},
    "reduce-sum-axes-input": case([node("ReduceSum", ("x", "a"))], ROWS, [1, 6, 1], {"a": ints(-1)}),
    "reduce-mean-axes-input": case([node("ReduceMean", ("x", "a"), keepdims=0)], IMAGE, [1, 4], {"a": ints(2, 3)}, opset=18),
    "reduce-log-sum": case([node("Exp", output="p"), node("ReduceLogSum", ("p",), axes=[2])], ROWS, [1, 6, 1]),
    "argmax": case([node("ArgMax", axis=2, keepdims=0)], ROWS, [1, 6], answer="int64"),
    "argmin-channels-kept": case([node("ArgMin", axis=1)], IMAGE, [1, 1, 9, 8], answer="int64"),
    "top-k": case([node("TopK", ("x", "k"), ["y", "places"])], ROWS, [1, 6, 3], {"k": ints(3)}),
    "cumsum": case([node("CumSum", ("x", "a"), exclusive=1)], ROWS, ROWS, {"a": np.int64(1)}),
    # shapes and places
    "reshape-same": case([node("Reshape", ("x", "s"))], ROWS, ROWS, {"s": ints(0, 6, 8)}),
    "shape-of-input": case([node("Shape", output="s"), node("Slice", ("s", "zero", "one"), "n"), node("Concat", ("n", "rest"), "t", axis=0), node("Reshape", ("x", "t"))], ROWS, [1, 12, 4], {"zero": ints(0), "one": ints(1), "rest": ints(12, 4)}),
    "expand": case([node("Unsqueeze", ("x", "a"), "u"), node("Expand", ("u", "s"))], ROWS, [1, 3, 6, 8], {"a": ints(1), "s": ints(1, 3, 1, 1)}),
    "tile": case([node("Conv", ("x", "w"), "c"), node("Tile", ("c", "r"))], IMAGE, [1, 4, 18, 8], {"w": weights(4, 4, 1, 1), "r": ints(1, 1, 2, 1)}),
    **{f"{op.lower()}-bool": case([node("Greater", ("x", "k"), "g"), node(op, ("g", "a"), "r", keepdims=0), node("Cast", ("r",), to=1)], ROWS, [1, 8], {"k": np.float32(1), "a": ints(1)}, opset=20) for op in ("ReduceMax", "ReduceMin")},
    "unsqueeze-after-conv": case([node("Conv", ("x", "w"), "c"), node("ReduceMax", ("c",), "m", axes=[2], keepdims=0), node("Unsqueeze", ("m", "a"))], IMAGE, [1, 1, 4, 8], {"w": weights(4, 4, 1, 1), "a": ints(1)}),
    "slice": case([node("Slice", ("x", "s", "e", "a"))], IMAGE, [1, 2, 9, 5], {"s": ints(1, -6), "e": ints(3, -1), "a": ints(1, 3)}),
    "slice-steps-after-conv": case([node("Conv", ("x", "w"), "c"), node("Slice", ("c", "s", "e", "a", "t"))], IMAGE, [1, 4, 5, 8], {"w": weights(4, 4, 1, 1), "s": ints(0), "e": ints(2**62), "a": ints(2), "t": ints(2)}),
    "slice-backwards": case([node("Slice", ("x", "s", "e", "a", "t"))], ROWS, ROWS, {"s": ints(-1), "e": ints(-(2**62)), "a": ints(1), "t": ints(-1)}),
    "split-sizes": case([node("Conv", ("x", "w"), "c"), node("Split", ("c", "s"), ["p", "q"], axis=1), node("Concat", ("q", "p"), axis=1)], IMAGE, IMAGE, {"w": weights(4, 4, 1, 1), "s": ints(1, 3)}),
    "split-equal": case([node("Split", output=["p", "q"], axis=2), node("Sub", ("p", "q"))], ROWS, [1, 6, 4]),
    "split-count": case([node("Split", output=["p", "q", "r"], axis=2, num_outputs=3), node("Concat", ("r", "p", "q"), axis=2)], ROWS, ROWS, opset=18),
    "gather-one": case([node("Gather", ("x", "i"), axis=1)], ROWS, [1, 8], {"i": np.int64(-2)}),
    "gather-neighbours": case([node("Gather", ("x", "i"), axis=2)], ROWS, [1, 6, 3], {"i": ints(2, 3, 4)}),
    "gather-channels": case([node("Conv", ("x", "w"), "c"), node("Gather", ("c", "i"), axis=1)], IMAGE, [1, 5, 9, 8], {"w": weights(4, 4, 1, 1), "i": ints(3, 0, 0, 1, -1)}),
    "gather-table": case([node("Gather", ("x", "i"), axis=1)], ROWS, [1, 2, 2, 8], {"i": ints(3, 0, 5, 1).reshape(2, 2)}),
    "embedding": case([node("Gather", ("w", "x"))], [1, 7], [1, 7, 3], {"w": weights(11, 3)}, kind="int64", below=11),
    "gather-elements": case([node("ArgMax", output="i", axis=2), node("GatherElements", ("x", "i"), axis=2)], ROWS, [1, 6, 1]),
    "gather-nd": case([node("GatherND", ("w", "x"))], [1, 5, 2], [1, 5], {"w": weights(4, 4)}, kind="int64", below=4),
    "one-hot": case([node("OneHot", ("x", "d", "v"))], [1, 6], [1, 6, 5], {"d": ints(5), "v": np.array([0.5, 2], np.float32)}, kind="int64", below=5),
    "trilu": case([node("Trilu", upper=0)], [1, 5, 5], [1, 5, 5]),
    "pad-edge": case([node("Pad", ("x", "p"), mode="edge")], IMAGE, [1, 4, 12, 8], {"p": ints(0, 0, 1, 0, 0, 0, 2, 0)}),
    "pad-reflect": case([node("Pad", ("x", "p"), mode="reflect")], IMAGE, [1, 4, 9, 11], {"p": ints(0, 0, 0, 2, 0, 0, 0, 1)}),
    "pad-negative": case([node("Pad", ("x", "p"))], IMAGE, [1, 4, 7, 10], {"p": ints(0, 0, -1, 2, 0, 0, -1, 0)}),
    "pad-axes": case([node("Pad", ("x", "p", "", "a"))], IMAGE, [1, 4, 9, 11], {"p": ints(1, 2), "a": ints(-1)}, opset=18),
    "depth-to-space": case([node("DepthToSpace", blocksize=2)], [1, 8, 3, 4], [1, 2, 6, 8]),
    "depth-to-space-crd": case([node("DepthToSpace", blocksize=2, mode="CRD")], [1, 8, 3, 4], [1, 2, 6, 8]),
    "space-to-depth": case([node("SpaceToDepth", blocksize=2)], [1, 2, 6, 8], [1, 8, 3, 4]),
    # signals, transposed convolutions, pooling
    "conv1d": case([node("Conv", ("x", "w", "b"), pads=[1, 1])], SIGNAL, [1, 6, 11], {"w": weights(6, 4, 3), "b": weights(6)}),
    "conv1d-stride-dilation": case([node("Conv", ("x", "w"), strides=[2], dilations=[2])], SIGNAL, [1, 6, 4], {"w": weights(6, 4, 3)}),
    "conv1d-depthwise": case([node("Conv", ("x", "w"), group=4, pads=[2, 0])], SIGNAL, [1, 4, 11], {"w": weights(4, 1, 3)}),
    "pool1d": case([node("MaxPool", output="m", kernel_shape=[2], strides=[2]), node("AveragePool", ("m",), kernel_shape=[3], pads=[1, 1])], SIGNAL, [1, 4, 5]),
    "global-max-pool": case([node("GlobalMaxPool")], IMAGE, [1, 4, 1, 1]),
    "max-pool-ceil": case([node("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], IMAGE, [1, 4, 5, 4]),
    "average-pool-ceil": case([node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], IMAGE, [1, 4, 4, 4]),
    "average-pool-uneven-pads": case([node("AveragePool", kernel_shape=[3, 3], pads=[2, 0, 1, 1], strides=[2, 2])], IMAGE, [1, 4, 5, 4]),
    "conv-transpose": case([node("ConvTranspose", ("x", "w", "b"), strides=[2, 2])], IMAGE, [1, 5, 19, 17], {"w": weights(4, 5, 3, 3), "b": weights(5)}),
    "conv-transpose-same": case([node("ConvTranspose", ("x", "w"), strides=[2, 2], auto_pad="SAME_UPPER")], IMAGE, [1, 5, 18, 16], {"w": weights(4, 5, 3, 3)}),
    "conv-transpose-of-pytorch": case([node("ConvTranspose", ("x", "w"), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])], IMAGE, [1, 5, 18, 16], {"w": weights(4, 5, 3, 3)}),
    "conv-transpose-4x4": case([node("ConvTranspose", ("x", "w"), strides=[2, 2], pads=[1, 1, 1, 1])], IMAGE, [1, 5, 18, 16], {"w": weights(4, 5, 4, 4)}),
    "conv-transpose-grouped-dilated": case([node("ConvTranspose", ("x", "w"), group=2, dilations=[2, 2])], IMAGE, [1, 6, 13, 12], {"w": weights(4, 3, 3, 3)}),
    "conv-transpose-1d": case([node("ConvTranspose", ("x", "w"), strides=[2])], SIGNAL, [1, 3, 23], {"w": weights(4, 3, 3)}),
    # resizing
    "resize-nearest-twice": case([node("Resize", ("x", "", "s"), coordinate_transformation_mode="asymmetric", nearest_mode="floor")], IMAGE, [1, 4, 18, 16], {"s": np.array([1, 1, 2, 2], np.float32)}),
    "resize-nearest-default": case([node("Resize", ("x", "", "s"))], IMAGE, [1, 4, 18, 24], {"s": np.array([1, 1, 2, 3], np.float32)}),
    "resize-nearest-odd": case([node("Resize", ("x", "", "", "z"), nearest_mode="ceil")], IMAGE, [1, 4, 13, 5], {"z": ints(1, 4, 13, 5)}),
    "resize-linear": case([node("Resize", ("x", "", "s"), mode="linear")], IMAGE, [1, 4, 18, 16], {"s": np.array([1, 1, 2, 2], np.float32)}),
    "resize-linear-corners": case([node("Resize", ("x", "", "", "z"), mode="linear", coordinate_transformation_mode="align_corners")], IMAGE, [1, 4, 17, 5], {"z": ints(1, 4, 17, 5)}),
    "resize-linear-asymmetric": case([node("Resize", ("x", "", "s"), mode="linear", coordinate_transformation_mode="asymmetric")], IMAGE, [1, 4, 18, 16], {"s": np.array([1, 1, 2, 2], np.float32)}),
    # what has no negative value, or has edges
    "max-pool-padded-after-relu": case([node("Relu", output="r"), node("MaxPool", ("r",), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], IMAGE, [1, 4, 5, 4]),
    "max-pool-padded-unevenly": case([node("MaxPool", kernel_shape=[3, 2], pads=[2, 0, 1, 1], strides=[2, 2])], IMAGE, [1, 4, 5, 4]),
    "max-pool-padded-ceil": case([node("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=1)], IMAGE, [1, 4, 5, 5]),
    "max-pool-dilated": case([node("MaxPool", kernel_shape=[2, 3], dilations=[2, 2], pads=[0, 1, 1, 0])], IMAGE, [1, 4, 8, 5]),
    "max-pool-1d-padded": case([node("MaxPool", kernel_shape=[3], pads=[1, 1], strides=[2])], SIGNAL, [1, 4, 6]),
    # negative indices
    "embedding-from-the-end": case([node("Sub", ("x", "k"), "i"), node("Gather", ("w", "i"))], [1, 7], [1, 7, 3], {"w": weights(11, 3), "k": ints(11)}, kind="int64", below=22),
    "gather-elements-of-rows": case([node("GatherElements", ("x", "i"), axis=1)], ROWS, [1, 2, 3], {"i": ints(0, -1, 2, -6, 4, 5).reshape(1, 2, 3)}),
    "gather-nd-from-the-end": case([node("Sub", ("x", "k"), "i"), node("GatherND", ("w", "i"))], [1, 5, 2], [1, 5], {"w": weights(4, 4), "k": ints(4)}, kind="int64", below=8),
    "gather-nd-of-batches": case([node("GatherND", ("x", "i"), batch_dims=1)], ROWS, [1, 2, 8], {"i": ints(-1, 2).reshape(1, 2, 1)}),
    "scatter-nd": case([node("ScatterND", ("x", "i", "u"))], ROWS, ROWS, {"i": ints(0, -1, 0, 2).reshape(2, 2), "u": weights(2, 8)}),
    "scatter-nd-adds": case([node("ScatterND", ("x", "i", "u"), reduction="add")], ROWS, ROWS, {"i": ints(0, 3, -1, 0, 1, 0).reshape(2, 3), "u": weights(2)}, opset=18),
    "scatter-elements": case([node("ScatterElements", ("x", "i", "u"), axis=2)], ROWS, ROWS, {"i": ints(0, -1, 2, 3).reshape(1, 2, 2), "u": weights(1, 2, 2)}),
    "compress": case([node("Compress", ("x", "c"), axis=1)], ROWS, [1, 3, 8], {"c": np.array([True, False, True, False, False, True])}),
    "channel-shuffle": case([node("Conv", ("x", "w"), "c"), node("Reshape", ("c", "a"), "r"), node("Transpose", ("r",), "t", perm=[0, 2, 1, 3, 4]), node("Reshape", ("t", "b"))], IMAGE, [1, 6, 9, 8], {"w": weights(6, 4, 1, 1), "a": ints(1, 2, 3, 9, 8), "b": ints(1, 6, 9, 8)}),
    "channel-shuffle-of-a-signal": case([node("Conv", ("x", "w"), "c"), node("Reshape", ("c", "a"), "r"), node("Transpose", ("r",), "t", perm=[0, 2, 1, 3]), node("Reshape", ("t", "b"))], SIGNAL, [1, 6, 11], {"w": weights(6, 4, 1), "a": ints(1, 2, 3, 11), "b": ints(1, 6, 11)}),
    "channels-in-groups": case([node("Conv", ("x", "w"), "c"), node("Reshape", ("c", "a"), "r"), node("ReduceMean", ("r",), "m", axes=[2, 3, 4]), node("Sub", ("r", "m"), "d"), node("Reshape", ("d", "b"))], IMAGE, [1, 6, 9, 8], {"w": weights(6, 4, 1, 1), "a": ints(1, 2, 3, 9, 8), "b": ints(1, 6, 9, 8)}),
    "pixels-by-hand": case([node("Conv", ("x", "w"), "c"), node("Reshape", ("c", "a"), "r"), node("Transpose", ("r",), "t", perm=[0, 1, 4, 2, 5, 3]), node("Reshape", ("t", "b"))], IMAGE, [1, 2, 18, 16], {"w": weights(8, 4, 1, 1), "a": ints(1, 2, 2, 2, 9, 8), "b": ints(1, 2, 18, 16)}),
    "channels-split-and-shown": case([node("Conv", ("x", "w"), "c"), node("Reshape", ("c", "a"))], IMAGE, [1, 2, 3, 9, 8], {"w": weights(6, 4, 1, 1), "a": ints(1, 2, 3, 9, 8)}),
    "five-axes": case([node("Reshape", ("x", "a"), "r"), node("Transpose", ("r",), "t", perm=[0, 2, 1, 3, 4]), node("Softmax", ("t",), "s", axis=2), node("Reshape", ("s", "b"))], IMAGE, [1, 2, 144], {"a": ints(1, 2, 2, 9, 8), "b": ints(1, 2, 144)}),
    "sigmoid-by-hand": case([node("Mul", ("x", "k"), "m"), node("Exp", ("m",), "e"), node("Add", ("e", "one"), "a"), node("Reciprocal", ("a",))], IMAGE, IMAGE, {"k": np.float32(-50), "one": np.float32(1)}),
    "silu-by-hand": case([node("Neg", ("x",), "m"), node("Exp", ("m",), "e"), node("Add", ("one", "e"), "a"), node("Div", ("x", "a"))], IMAGE, IMAGE, {"one": np.array([1], np.float32)}),
    "sum-read-twice": case([node("Exp", ("x",), "e"), node("Add", ("one", "e"), "a"), node("Div", ("one", "a"), "d"), node("Mul", ("a", "d"), "p"), node("Add", ("p", "d"))], IMAGE, IMAGE, {"one": np.float32(1)}),
    "hardmax": case([node("Hardmax", axis=1)], ROWS, ROWS),
    "argmax-last-of-equals": case([node("Round", output="r"), node("ArgMax", ("r",), axis=2, keepdims=0, select_last_index=1)], ROWS, [1, 6], answer="int64"),
    "top-k-smallest-of-rows": case([node("TopK", ("x", "k"), ["y", "places"], axis=1, largest=0)], ROWS, [1, 2, 8], {"k": ints(2)}),
    # functions
    **{op.lower(): case([node(op)], IMAGE, IMAGE) for op in ("Atan", "Sinh", "Cosh", "Asinh", "Shrink")},
    **{op.lower(): case([node("Sin", output="s"), node("Mul", ("s", "half"), "h"), node(op, ("h",))], IMAGE, IMAGE, HALF) for op in ("Tan", "Asin", "Acos", "Atanh")},
    "acosh": case([node("Abs", output="a"), node("Add", ("a", "one"), "p"), node("Acosh", ("p",))], IMAGE, IMAGE, {"one": np.float32(1.5)}),
    "fmod": case([node("Mod", ("x", "k"), fmod=1)], ROWS, ROWS, {"k": np.float32(0.7)}),
    "clip-integers": case([node("Clip", ("x", "lo", "hi"))], [1, 6], [1, 6], {"lo": np.int64(2), "hi": np.int64(5)}, kind="int64", answer="int64", below=9),
    "divide-integers": case([node("Sub", ("x", "k"), "s"), node("Div", ("s", "d"))], [1, 6], [1, 6], {"k": ints(5), "d": ints(3)}, kind="int64", answer="int64", below=9),
    "l1-norm": case([node("LpNormalization", axis=1, p=1)], ROWS, ROWS),
    "transpose-of-seven-axes": case([node("Reshape", ("x", "s"), "r"), node("Transpose", ("r",), "t", perm=[0, 6, 4, 2, 1, 3, 5]), node("Relu", ("t",), "u"), node("Reshape", ("u", "f"))], [1, 64], [1, 64], {"s": ints(1, 2, 2, 2, 2, 2, 2), "f": ints(1, 64)}),
    # interpolation that LiteRT has no operator for
    "resize-cubic": case([node("Resize", ("x", "", "s"), mode="cubic", cubic_coeff_a=-0.75)], IMAGE, [1, 4, 18, 16], {"s": np.array([1, 1, 2, 2], np.float32)}),
    "resize-linear-inexact": case([node("Resize", ("x", "", "s"), mode="linear")], IMAGE, [1, 4, 14, 12], {"s": np.array([1, 1, 1.6, 1.6], np.float32)}),
    "resize-linear-signal": case([node("Resize", ("x", "", "s"), mode="linear", coordinate_transformation_mode="asymmetric")], SIGNAL, [1, 4, 22], {"s": np.array([1, 1, 2], np.float32)}),
    "resize-axes": case([node("Resize", ("x", "", "", "z"), axes=[3, 2])], IMAGE, [1, 4, 18, 24], {"z": ints(24, 18)}, opset=18),
    "grid-sample": case([node("Tanh", ("g",), "t"), node("GridSample", ("x", "t"))], IMAGE, [1, 4, 5, 6], more={"g": [1, 5, 6, 2]}),
    "grid-sample-border": case([node("GridSample", ("x", "g"), padding_mode="border", align_corners=1)], IMAGE, [1, 4, 5, 6], more={"g": [1, 5, 6, 2]}),
    # transformers of newer operator sets
    "attention-operator": case([node("Attention", ("x", "x", "x", "m"), q_num_heads=2, kv_num_heads=2, is_causal=1)], ROWS, ROWS, {"m": np.tile([True, True, False, True, True, True], (6, 1))}, opset=23),
    "rotary-embedding": case([node("RotaryEmbedding", ("x", "c", "s"), num_heads=2)], ROWS, ROWS, {"c": np.cos(weights(1, 6, 2)), "s": np.sin(weights(1, 6, 2))}, opset=23),
    # recurrent
    "lstm": recurrent("LSTM", 4, states=2),
    "lstm-both-ways": recurrent("LSTM", 4, ways=2, states=2, direction="bidirectional"),
    "lstm-backwards": recurrent("LSTM", 4, states=2, direction="reverse"),
    "gru": recurrent("GRU", 3),
    "gru-reset-after": recurrent("GRU", 3, linear_before_reset=1),
    "gru-both-ways": recurrent("GRU", 3, ways=2, direction="bidirectional", linear_before_reset=1),
    "rnn": recurrent("RNN", 1),
    "lstm-lengths": recurrent("LSTM", 4, ways=2, states=2, lengths=True, direction="bidirectional"),
    "gru-lengths": recurrent("GRU", 3, ways=2, lengths=True, direction="bidirectional", linear_before_reset=1),
    "lstm-first-states": case([node("LSTM", ("x", "w", "r", "", "", "h", "c"), ["", "", "y"], hidden_size=3)], [1, 1, 4], [1, 1, 3], {"w": weights(1, 12, 4), "r": weights(1, 12, 3), "h": weights(1, 1, 3), "c": weights(1, 1, 3)}),
    "stft": case([node("STFT", ("x", "step", "window"))], [1, 40], [1, 5, 9, 2], {"step": np.int64(5), "window": np.hanning(16).astype(np.float32)}),
    "stft-all-bins": case([node("STFT", ("x", "step", "", "length"), onesided=0)], [1, 40, 1], [1, 5, 16, 2], {"step": np.int64(5), "length": np.int64(16)}),
    "dft": case([node("DFT", axis=2)], [1, 6, 8, 1], [1, 6, 8, 2]),
    "dft-one-sided-short": case([node("DFT", ("x", "length"), axis=1, onesided=1)], [1, 6, 8, 1], [1, 3, 8, 2], {"length": np.int64(4)}),
    "dft-complex-long": case([node("DFT", ("x", "length"), axis=2)], [1, 6, 8, 2], [1, 6, 10, 2], {"length": np.int64(10)}),
    "dft-prime": case([node("DFT", ("x", "length"), axis=1)], [1, 6, 8, 1], [1, 7, 8, 2], {"length": np.int64(7)}),
    "dft-complex-prime": case([node("DFT", ("x", "length"), axis=1)], [1, 6, 8, 2], [1, 5, 8, 2], {"length": np.int64(5)}),
    "dft-inverse": case([node("DFT", axis=1, inverse=1)], [1, 6, 8, 2], [1, 6, 8, 2]),
}  # fmt: skip


def joined(names):
    """One model with many cases side by side; every name begins with the name of its case."""
    nodes, inputs, outputs, held = [], [], [], []
    for index, name in enumerate(names):
        one, prefix = CASES[name], f"{index}_"
        for part in one.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(part)
            copy.name = f"{name}/{part.name}"
            copy.input[:] = [entry and prefix + entry for entry in part.input]
            copy.output[:] = [entry and prefix + entry for entry in part.output]
            nodes.append(copy)
        taken = {"x": one.x, **one.more}
        inputs += [
            helper.make_tensor_value_info(prefix + n, _kind(one.kind), ["batch", *s[1:]]) for n, s in taken.items()
        ]
        outputs.append(helper.make_tensor_value_info(prefix + "y", _kind(one.answer), ["batch", *one.y[1:]]))
        outputs += [helper.make_tensor_value_info(prefix + n, 1, ["batch", *s[1:]]) for n, s in one.also.items()]
        held += [numpy_helper.from_array(np.asarray(value), prefix + n) for n, value in one.w.items()]
    graph = helper.make_graph(nodes, "cases", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", CASES[names[0]].opset)], ir_version=10)


def _kind(name):
    return helper.np_dtype_to_tensor_dtype(np.dtype(name))


def groups():
    """Names of cases that can share a model."""
    found = []
    for opset in sorted({one.opset for one in CASES.values()}):
        names = [name for name, one in CASES.items() if one.opset == opset]
        found += [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    return found


PLACES = {name: (number, index) for number, names in enumerate(groups()) for index, name in enumerate(names)}


# The first case of each group lowers the whole group: up to 12 s.
@pytest.fixture(scope="module")
def answers(child, tmp_path_factory):
    """The answers of a case by LiteRT and by ONNX Runtime, each as {name: array}."""
    done, folder = {}, tmp_path_factory.mktemp("operators")

    def run(names, path):
        graph = canonical(joined(names), "cases").with_batch(1)
        result = child.call("lower", model=graph.to_bytes())
        path.write_bytes(result.data)
        raw = LiteRTRuntime(path)
        rng = np.random.default_rng(2)
        x = {}
        for spec in graph.inputs:
            one = CASES[names[int(spec.name.partition("_")[0])]]
            values = rng.normal(0, 2, spec.shape) if one.kind == "float32" else rng.integers(0, one.below, spec.shape)
            x[spec.name] = values.astype(spec.dtype.numpy)
        return LogicalRuntime(raw, *bindings_of(graph, raw, result)).run(x), Graph(graph.model).run(x)

    def answer(name):
        number, index = PLACES[name]
        if number not in done:
            done[number] = run(groups()[number], folder / f"{number}.tflite")
        prefix = f"{index}_"
        return [{key: value for key, value in side.items() if key.startswith(prefix)} for side in done[number]]

    return answer


@pytest.mark.parametrize("name", CASES)
def test_operator_answers_as_in_onnx(name, answers):
    """Each operator, lowered to LiteRT, gives what ONNX Runtime gives."""
    found, expected = answers(name)
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=2e-5, rtol=1e-4)
