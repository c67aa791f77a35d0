"""Small networks, one for each structure that channels can be removed from, and the network with masked channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.frontends.onnx import canonical
from converters.graph.graph import Graph
from converters.passes import ConstantShapes, run_pass
from tests.simulators.channel_models import Net
from tests.simulators.models import model_of

WORDS, WIDTH, HEADS = 6, 16, 4


def masked(channels, removed):
    """The graph of `channels` in which every reader reads 0 from the `removed` ones (n,), bool."""
    model = onnx.ModelProto()
    model.CopyFrom(channels.graph.model)
    nodes = list(model.graph.node)
    for place, read in enumerate(channels.reads):
        rank = len(channels.sizes[read.tensor])
        shape = [1] * rank
        shape[read.lanes.axis] = -1
        mask = (~removed[read.lanes.ids]).astype(np.float32).reshape(shape)
        model.graph.initializer.append(numpy_helper.from_array(mask, f"mask{place}"))
        nodes[read.node].input[0] = f"masked{place}"
        at = next(i for i, node in enumerate(model.graph.node) if node.output[0] == nodes[read.node].output[0])
        model.graph.node.insert(at, helper.make_node("Mul", [read.tensor, f"mask{place}"], [f"masked{place}"]))
        nodes = nodes[: read.node] + [n for n in model.graph.node if not n.output[0].startswith("masked")][read.node :]
    return Graph(model)


class Words:
    """Builds a graph for sequences (batch, words, width)."""

    def __init__(self, seed=0, width=WIDTH):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights = [], {}
        self.inputs = {"x": ["batch", WORDS, width]}

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [f"t{len(self.nodes)}" + "abc"[i] * (outputs > 1) for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, list(inputs), names, name=f"{kind.lower()}{len(self.nodes)}", **attributes)
        )
        return names[0] if outputs == 1 else names

    def constant(self, value, dtype=np.float32):
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def dense(self, x, inputs, width):
        w = self.constant(self.rng.normal(0, 1 / np.sqrt(inputs), (inputs, width)))
        return self.op("Add", self.op("MatMul", x, w), self.constant(self.rng.normal(0, 0.3, width)))

    def heads(self, x, order=(0, 2, 1, 3)):
        shape = self.constant([0, WORDS, HEADS, WIDTH // HEADS], np.int64)
        return self.op("Transpose", self.op("Reshape", x, shape), perm=list(order))

    def attended(self, query, key, value):
        """Attention over (batch, heads, words, depth); `key` is already (batch, heads, depth, words)."""
        scores = self.op("Mul", self.op("MatMul", query, key), self.constant(0.5))
        scores = self.op("Add", scores, self.constant(self.rng.normal(0, 1, (1, 1, 1, WORDS))))
        mixed = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
        return self.op("Reshape", mixed, self.constant([0, WORDS, WIDTH], np.int64))

    def graph(self, output):
        shapes = Graph(model_of(self.nodes, self.inputs, {}, self.weights)).shapes[output]
        model = model_of(self.nodes, self.inputs, {output: ["batch", *shapes[1:]]}, self.weights)
        return run_pass(ConstantShapes(), canonical(model, "test")).graph

    def x(self, rows=24, seed=1):
        shape = (rows, *self.inputs["x"][1:])
        return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def attention():
    net = Words()
    query, key, value = (
        net.heads(net.dense("x", WIDTH, WIDTH), order) for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    )
    return net, net.dense(net.attended(query, key, value), WIDTH, 5)


def joined_attention():
    """One layer makes queries, keys and values."""
    net = Words()
    joined = net.op(
        "Reshape", net.dense("x", WIDTH, 3 * WIDTH), net.constant([0, WORDS, 3, HEADS, WIDTH // HEADS], np.int64)
    )
    parts = net.op("Transpose", joined, perm=[2, 0, 3, 1, 4])
    query, key, value = (net.op("Gather", parts, net.constant(place, np.int64), axis=0) for place in range(3))
    key = net.op("Transpose", key, perm=[0, 1, 3, 2])
    return net, net.dense(net.attended(query, key, value), WIDTH, 5)


def flat_attention():
    """As exporters write it: dense layers over (batch * words, width), with reshapes around them."""
    net = Words()
    flat = net.op("Reshape", "x", net.constant([-1, WIDTH], np.int64))
    shape = net.constant([-1, WORDS, HEADS, WIDTH // HEADS], np.int64)
    query, key, value = (net.op("Reshape", net.dense(flat, WIDTH, WIDTH), shape) for _ in range(3))
    query, value = (net.op("Transpose", one, perm=[0, 2, 1, 3]) for one in (query, value))
    mixed = net.attended(query, net.op("Transpose", key, perm=[0, 2, 3, 1]), value)
    answer = net.dense(net.op("Reshape", mixed, net.constant([-1, WIDTH], np.int64)), WIDTH, 5)
    return net, net.op("Reshape", answer, net.constant([-1, WORDS, 5], np.int64))


def words_first_attention():
    """As PyTorch's MultiheadAttention is exported: layers over (words, batch, width), heads merged with the batch."""
    net, depth = Words(), WIDTH // HEADS
    turned = net.op("Transpose", "x", perm=[1, 0, 2])
    merged, apart = (net.constant(shape, np.int64) for shape in ([WORDS, -1, depth], [-1, HEADS, WORDS, depth]))
    parts = []
    for _ in range(3):
        part = net.op("Reshape", net.dense(turned, WIDTH, WIDTH), merged)
        parts.append(net.op("Reshape", net.op("Transpose", part, perm=[1, 0, 2]), apart))
    query, key, value = parts
    first, end, axis = (net.constant([number], np.int64) for number in (0, -2, 0))
    begin = net.op("Slice", net.op("Shape", key), first, end, axis)
    key = net.op("Reshape", key, net.constant([-1, WORDS, depth], np.int64))
    shape = net.op("Concat", begin, net.constant([depth], np.int64), net.constant([WORDS], np.int64), axis=0)
    key = net.op("Reshape", net.op("Transpose", key, perm=[0, 2, 1]), shape)
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", query, key), axis=-1), value)
    flat = net.op("Reshape", net.op("Transpose", mixed, perm=[2, 0, 1, 3]), net.constant([-1, WIDTH], np.int64))
    answer = net.op("Reshape", net.dense(flat, WIDTH, 5), net.constant([WORDS, -1, 5], np.int64))
    return net, net.op("Transpose", answer, perm=[1, 0, 2])


def shared_keys():
    """Grouped heads: two heads of keys and values, each repeated for two heads of queries, by a computed shape."""
    net, depth, groups = Words(), WIDTH // HEADS, HEADS // 2
    shape = net.constant([0, WORDS, groups, depth], np.int64)
    batch = net.op("Shape", "x", start=0, end=1)
    wide = [net.constant([size], np.int64) for size in (groups, 2, WORDS, depth)]
    wide_shape = net.op("Concat", batch, *wide, axis=0)
    query = net.heads(net.dense("x", WIDTH, WIDTH))
    parts = []
    for _ in range(2):
        part = net.op("Transpose", net.op("Reshape", net.dense("x", WIDTH, groups * depth), shape), perm=[0, 2, 1, 3])
        part = net.op("Expand", net.op("Unsqueeze", part, net.constant([2], np.int64)), wide_shape)
        parts.append(net.op("Reshape", part, net.constant([0, HEADS, WORDS, depth], np.int64)))
    key = net.op("Transpose", parts[0], perm=[0, 1, 3, 2])
    return net, net.dense(net.attended(query, key, parts[1]), WIDTH, 5)


def transformer():
    """A layer with normalization, a residual stream, attention, and a wide inner part with GELU in single operators."""
    net = Words()

    def normalized(x):
        scale, bias = net.constant(net.rng.normal(1, 0.1, WIDTH)), net.constant(net.rng.normal(0, 0.1, WIDTH))
        return net.op("LayerNormalization", x, scale, bias, axis=-1)

    inner = normalized("x")
    query, key, value = (
        net.heads(net.dense(inner, WIDTH, WIDTH), order) for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    )
    x = net.op("Add", "x", net.dense(net.attended(query, key, value), WIDTH, WIDTH))
    wide = net.dense(normalized(x), WIDTH, 24)
    half = net.op("Add", net.op("Erf", net.op("Div", wide, net.constant(1.4142135))), net.constant(1.0))
    wide = net.op("Mul", net.op("Mul", wide, half), net.constant(0.5))
    x = net.op("Add", x, net.dense(wide, 24, WIDTH))
    return net, net.dense(net.op("ReduceMean", x, axes=[1], keepdims=0), WIDTH, 3)


def gated():
    """A layer whose halves multiply each other, with a Split into equal parts without sizes."""
    net = Words()
    one, two = net.op("Split", net.dense("x", WIDTH, 24), outputs=2, axis=-1)
    return net, net.dense(net.op("Mul", one, net.op("Sigmoid", two)), 12, 5)


def sliced():
    net = Words()
    x = net.dense("x", WIDTH, 12)
    low, high, axis = (net.constant([value], np.int64) for value in (5, 1 << 62, 2))
    one = net.op("Slice", x, net.constant([0], np.int64), low, axis)
    two = net.op("Slice", x, low, high, axis)
    return net, net.op("Add", net.dense(net.op("Relu", one), 5, 4), net.dense(net.op("Tanh", two), 7, 4))


def recurrent():
    """A dense layer whose output an LSTM reads, and an answer of its last state."""
    net, hidden = Words(), 5
    x = net.op("Transpose", net.op("Relu", net.dense("x", WIDTH, 9)), perm=[1, 0, 2])
    w, r = (net.constant(net.rng.normal(0, 0.4, (1, 4 * hidden, size))) for size in (9, hidden))
    _, last = net.op(
        "LSTM", x, w, r, net.constant(net.rng.normal(0, 0.2, (1, 8 * hidden))), outputs=2, hidden_size=hidden
    )
    return net, net.dense(net.op("Squeeze", last, net.constant([0], np.int64)), hidden, 3)


def _images(build: Callable[[Net, str], str]):
    def make():
        net = Net(seed=3)
        x = net.relu(net.conv("x", 8))
        return net, net.head(net.relu(net.conv(build(net, x), 6)))

    return make


def _residual(net, x):
    one = net.op("Add", [net.conv(x, 8), x])
    return net.relu(net.op("Add", [one, net.constant(net.rng.normal(0, 1, (1, 8, 1, 1)).astype(np.float32))]))


def _concat(net, x):
    joined = net.op("Concat", [x, net.relu(net.conv(x, 5)), "x"], 15, axis=1)
    return net.relu(net.conv(joined, 7, kernel=1))


def _split(net, x):
    one, two = net.op("Split", [x, net.constant(np.array([3, 5], np.int64))], outputs=2, axis=1)
    net.widths.update({one: 3, two: 5})
    return net.op("Concat", [net.relu(net.conv(one, 4)), two], 9, axis=1)


def _grouped(net, x):
    return net.relu(net.conv(net.relu(net.conv(x, 12, group=4)), 8, group=2))


def _shuffled(net, x):
    """Channels of two groups change places, as in ShuffleNet."""
    x = net.conv(x, 8, group=2)
    x = net.op("Reshape", [x, net.constant(np.array([0, 2, 4, 8, 8], np.int64))])
    x = net.op("Transpose", [x], perm=[0, 2, 1, 3, 4])
    return net.conv(net.op("Reshape", [x, net.constant(np.array([0, 8, 8, 8], np.int64))]), 8, group=2)


def _squeezed(net, x):
    inner = net.relu(net.conv(net.op("GlobalAveragePool", [x]), 4, kernel=1))
    return net.op("Mul", [x, net.op("Sigmoid", [net.conv(inner, 8, kernel=1)])])


def _normalized(net, x):
    stats = [np.abs(net.rng.normal(1, 0.3, 8)).astype(np.float32) for _ in range(4)]
    return net.relu(net.op("BatchNormalization", [x, *(net.constant(one) for one in stats)]))


def _instances(net, x):
    stats = [np.abs(net.rng.normal(1, 0.3, 8)).astype(np.float32) for _ in range(2)]
    return net.op("InstanceNormalization", [x, *(net.constant(one) for one in stats)])


def _up(net, x):
    w = net.constant(net.rng.normal(0, 0.3, (8, 6, 3, 3)).astype(np.float32))
    b = net.constant(net.rng.normal(0, 0.3, 6).astype(np.float32))
    pads = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    return net.relu(net.op("ConvTranspose", [x, w, b], 6, **pads))


def up_by_groups():
    """A transposed convolution with groups, for which there is no rule, between two layers."""
    net = Net(seed=3)
    w = net.constant(net.rng.normal(0, 0.3, (8, 2, 3, 3)).astype(np.float32))
    x = net.op("ConvTranspose", [net.relu(net.conv("x", 8)), w], 8, group=4, pads=[1] * 4)
    return net, net.conv(net.relu(x), 3)


def flattened(kind, *, turned=False):
    def make():
        net = Net(seed=4, size=4)
        x = net.relu(net.conv("x", 6))
        if turned:
            x = net.op("Transpose", [x], perm=[0, 2, 3, 1])
        target = [net.constant(np.array([0, 96], np.int64))] if kind == "Reshape" else []
        return net, net.dense(net.relu(net.dense(net.op(kind, [x, *target]), 96, 10)), 10, 3)

    return make


def _interpolated(net, x):
    """Half as large and back, as PyTorch's exporter writes `interpolate` with a free batch, between waves."""
    small = net.op("AveragePool", [net.op("Sin", [x])], kernel_shape=[2, 2], strides=[2, 2])
    first = net.op("Shape", [small], start=0, end=2)
    sizes = net.op("Concat", [first, net.constant(np.array([8, 8], np.int64))], axis=0)
    return net.op("Cos", [net.op("Resize", [small, "", "", sizes], mode="nearest")])


STRUCTURES = {
    "plain": _images(lambda net, x: x),
    "interpolated": _images(_interpolated),
    "depthwise": _images(lambda net, x: net.relu(net.deep(net.relu(net.deep(x))))),
    "residual": _images(_residual),
    "concat": _images(_concat),
    "split": _images(_split),
    "grouped": _images(_grouped),
    "shuffled": _images(_shuffled),
    "squeezed": _images(_squeezed),
    "normalized": _images(_normalized),
    "instances": _images(_instances),
    "transposed convolution": _images(_up),
    "flatten": flattened("Flatten"),
    "reshape": flattened("Reshape"),
    "transposed": flattened("Reshape", turned=True),
    "attention": attention,
    "joined attention": joined_attention,
    "flat attention": flat_attention,
    "words first": words_first_attention,
    "shared keys": shared_keys,
    "transformer": transformer,
    "gated": gated,
    "sliced": sliced,
    "recurrent": recurrent,
}
