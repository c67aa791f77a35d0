"""Small ONNX models without convolutions: an autoencoder, an encoder block of a transformer, an LSTM."""

import itertools

import numpy as np
from onnx import helper

from converters.graph.graph import Graph
from tests.simulators.models import model_of


def autoencoder(seed=0, width=64):
    """Five Gemm layers with Relu between them."""
    rng = np.random.default_rng(seed)
    weights, nodes, last = {}, [], "x"
    sizes = [32, width, width, 8, width, 32]
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{i}"] = rng.normal(0, 1 / np.sqrt(a), (a, b)).astype(np.float32)
        weights[f"b{i}"] = rng.normal(0, 0.1, b).astype(np.float32)
        final = i == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], ["y" if final else f"g{i}"], name=f"dense{i}"))
        if not final:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i}"], name=f"relu{i}"))
            last = f"r{i}"
    return Graph(model_of(nodes, {"x": ["batch", 32]}, {"y": ["batch", 32]}, weights))


def lstm(seed=0, hidden=16, features=8):
    """An LSTM over six steps and a Gemm on its last state."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(0, 0.3, (1, 4 * hidden, features)).astype(np.float32),
        "r": rng.normal(0, 0.3, (1, 4 * hidden, hidden)).astype(np.float32),
        "b": np.zeros((1, 8 * hidden), np.float32),
        "head": rng.normal(0, 0.3, (hidden, 4)).astype(np.float32),
        "axis": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2], name="turn"),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["", "h"], hidden_size=hidden, name="memory"),
        helper.make_node("Squeeze", ["h", "axis"], ["s"], name="squeeze"),
        helper.make_node("Gemm", ["s", "head"], ["y"], name="head"),
    ]
    return Graph(model_of(nodes, {"x": ["batch", 6, features]}, {"y": ["batch", 4]}, weights))


class _Builder:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights = [], {}

    def op(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **attributes))
        return output

    def constant(self, name, value):
        self.weights[name] = np.asarray(value)
        return name

    def dense(self, x, name, a, b):
        """A MatMul and the Add of its bias."""
        self.constant(f"{name}.w", self.rng.normal(0, 0.3, (a, b)).astype(np.float32))
        self.constant(f"{name}.b", self.rng.normal(0, 0.1, b).astype(np.float32))
        return self.op("Add", [self.op("MatMul", [x, f"{name}.w"], f"{name}.m"), f"{name}.b"], name)

    def norm(self, x, name, size, *, whole):
        """LayerNormalization as one node (`whole`) or as primitive nodes, like older exporters write it.

        All calls share their constants.
        """
        scale = self.constant("norm.scale", np.linspace(0.9, 1.1, size, dtype=np.float32))
        shift = self.constant("norm.shift", np.linspace(-0.1, 0.1, size, dtype=np.float32))
        if whole:
            return self.op("LayerNormalization", [x, scale, shift], name, axis=-1)
        self.constant("two", np.float32(2))
        self.constant("tiny", np.float32(1e-5))
        centred = self.op("Sub", [x, self.op("ReduceMean", [x], f"{name}.mean", axes=[-1])], f"{name}.d")
        variance = self.op("ReduceMean", [self.op("Pow", [centred, "two"], f"{name}.sq")], f"{name}.var", axes=[-1])
        root = self.op("Sqrt", [self.op("Add", [variance, "tiny"], f"{name}.e")], f"{name}.root")
        scaled = self.op("Mul", [self.op("Div", [centred, root], f"{name}.n"), scale], f"{name}.g")
        return self.op("Add", [scaled, shift], name)


def encoder(seed=0, steps=8, size=16, heads=2, *, whole_norms=False):
    """One encoder block (attention and a Gelu network, each with normalization and skip), a mean over steps, a head."""
    b = _Builder(seed)
    b.constant("split", np.array([0, steps, heads, size // heads], np.int64))
    b.constant("join", np.array([0, steps, size], np.int64))
    h = b.norm("x", "norm1", size, whole=whole_norms)
    q, k, v = (
        b.op("Transpose", [b.op("Reshape", [b.dense(h, n, size, size), "split"], f"{n}.r")], f"{n}.t", perm=perm)
        for n, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    scores = b.op("Div", [b.op("MatMul", [q, k], "qk"), b.constant("root", np.float32(np.sqrt(size // heads)))], "qks")
    mixed = b.op("MatMul", [b.op("Softmax", [scores], "attention", axis=-1), v], "av")
    mixed = b.op("Reshape", [b.op("Transpose", [mixed], "avt", perm=[0, 2, 1, 3]), "join"], "avj")
    y = b.op("Add", ["x", b.dense(mixed, "out", size, size)], "sum1")
    wide = b.dense(b.norm(y, "norm2", size, whole=whole_norms), "up", size, 4 * size)
    error = b.op("Erf", [b.op("Div", [wide, b.constant("root2", np.float32(np.sqrt(2)))], "scaled")], "erf")
    gate = b.op("Mul", [wide, b.op("Add", [error, b.constant("one", np.float32(1))], "shifted")], "gated")
    gelu = b.op("Mul", [gate, b.constant("half", np.float32(0.5))], "gelu")
    y = b.op("Add", [y, b.dense(gelu, "down", 4 * size, size)], "sum2")
    mean = b.op("ReduceMean", [y], "mean", axes=[1], keepdims=0)
    b.constant("c.w", b.rng.normal(0, 0.3, (size, 4)).astype(np.float32))
    b.op("Softmax", [b.op("MatMul", [mean, "c.w"], "logits")], "y", axis=-1)
    return Graph(model_of(b.nodes, {"x": ["batch", steps, size]}, {"y": ["batch", 4]}, b.weights))
