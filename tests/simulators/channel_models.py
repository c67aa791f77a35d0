"""Networks with dead channels: 0 for every input, or 0 for ordinary inputs only."""

import numpy as np
from onnx import helper

from converters.frontends.onnx import canonical
from converters.graph.graph import Graph
from tests.simulators.models import model_of, patterns

NEVER, SELDOM = "never", "seldom"  # NEVER: no weights, bias below 0; SELDOM: weights, bias far below 0


class Net:
    """Builds a graph for images (batch, channels, size, size) layer by layer. Layer methods return a tensor's name."""

    def __init__(self, seed=0, channels=2, size=8):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights = [], {"zero": np.float32(0), "six": np.float32(6)}
        self.inputs = {"x": ["batch", channels, size, size]}
        self.widths = {"x": channels}

    def op(self, kind, inputs, width=None, outputs=1, **attributes):
        names = [f"t{len(self.nodes)}" + "abc"[i] * (outputs > 1) for i in range(outputs)]
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        self.widths.update(dict.fromkeys(names, width if width is not None else self.widths[inputs[0]]))
        return names[0] if outputs == 1 else names

    def constant(self, value, name=None):
        name = name or f"k{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def conv(self, x, width, *, kernel=3, group=1, stride=1, dead=(), how=NEVER, bias=True):
        """A convolution. The channels in `dead` give at most -1: always (NEVER), or for ordinary inputs (SELDOM)."""
        fan = self.widths[x] // group * kernel * kernel
        w = self.rng.normal(0, 1.5 / np.sqrt(fan), (width, self.widths[x] // group, kernel, kernel))
        b = self.rng.normal(0.2, 0.3, width)
        dead = list(dead)
        if how == NEVER:
            w[dead], b[dead] = 0, -1
        else:
            b[dead] = -200
        inputs = [x, self.constant(w.astype(np.float32))]
        inputs += [self.constant(b.astype(np.float32))] if bias else []
        return self.op("Conv", inputs, width, group=group, pads=[kernel // 2] * 4, strides=[stride] * 2)

    def deep(self, x, **how):
        return self.conv(x, self.widths[x], group=self.widths[x], **how)

    def relu(self, x):
        return self.op("Relu", [x])

    def relu6(self, x):
        return self.op("Clip", [x, "zero", "six"])

    def dense(self, x, inputs, width, *, kind="Gemm", dead=()):
        w, b = self.rng.normal(0, 1 / np.sqrt(inputs), (inputs, width)), self.rng.normal(0, 0.3, width)
        w[:, list(dead)], b[list(dead)] = 0, -1
        w, b = self.constant(w.astype(np.float32)), self.constant(b.astype(np.float32))
        if kind == "MatMul":
            return self.op("Add", [self.op("MatMul", [x, w], width), b])
        return self.op("Gemm", [x, w, b], width)

    def head(self, x, width=3):
        """Global pooling and a dense layer."""
        flat = self.op("Flatten", [self.op("GlobalAveragePool", [x])])
        return self.dense(flat, self.widths[x], width)

    def model(self, *outputs):
        shapes = {name: ["batch", *self.shape_of(name)[1:]] for name in outputs}
        return model_of(self.nodes, self.inputs, shapes, self.weights)

    def graph(self, *outputs):
        return canonical(self.model(*outputs), "test")

    def shape_of(self, name):
        return Graph(model_of(self.nodes, self.inputs, {}, self.weights)).shapes[name]

    def x(self, rows=70, seed=1, scale=1.0):
        rng = np.random.default_rng(seed)
        return (rng.normal(0, scale, (rows, *self.inputs["x"][1:]))).astype(np.float32)


def random_network(seed, how):
    """A network of random blocks with random dead channels in every layer. Returns its graph and its Net."""
    net = Net(seed, channels=2, size=8)
    rng = np.random.default_rng(seed + 1000)

    def dead(width):
        return rng.choice(width, rng.integers(0, width), replace=False)

    width = int(rng.integers(3, 9))
    last = net.relu(net.conv("x", width, dead=dead(width), how=how))
    for _ in range(int(rng.integers(2, 6))):
        kind = rng.choice(["plain", "deep", "residual", "concat", "gate", "split", "scale", "pool", "turn", "leaky"])
        width = net.widths[last]
        if kind == "plain":
            width = int(rng.integers(3, 9))
            last = net.relu(net.conv(last, width, dead=dead(width), how=how, kernel=int(rng.choice([1, 3]))))
        elif kind == "deep":
            last = net.relu6(net.deep(last, dead=dead(width), how=how))
        elif kind == "residual":
            last = net.relu(net.op("Add", [net.conv(last, width, dead=dead(width), how=how), last]))
        elif kind == "concat":
            other = net.relu(net.conv(last, 4, dead=dead(4), how=how))
            last = net.op("Concat", [last, other], width + 4, axis=1)
        elif kind == "gate":
            squeezed = net.op("GlobalAveragePool", [last])
            inner = net.relu(net.conv(squeezed, 4, kernel=1, dead=dead(4), how=how))
            last = net.op("Mul", [last, net.op("Sigmoid", [net.conv(inner, width, kernel=1)])])
        elif kind == "split" and width > 3:
            sizes = net.constant(np.array([2, width - 2], np.int64))
            one, two = net.op("Split", [last, sizes], outputs=2, axis=1)
            net.widths.update({one: 2, two: width - 2})
            last = net.op("Concat", [net.relu(net.conv(one, 3, dead=dead(3), how=how)), two], width + 1, axis=1)
        elif kind == "scale":
            factor = rng.normal(1, 0.2, (1, width, 1, 1)).astype(np.float32)
            last = net.relu(net.op("Mul", [last, net.constant(factor)]))
        elif kind == "pool" and len(net.shape_of(last)) == 4:
            last = net.op(str(rng.choice(["MaxPool", "AveragePool"])), [last], kernel_shape=[2, 2], pads=[1, 1, 0, 0])
        elif kind == "turn":
            there = net.op("Transpose", [last], perm=[0, 2, 3, 1])
            last = net.op("Transpose", [there], perm=[0, 3, 1, 2])
        elif kind == "leaky":
            last = net.op("LeakyRelu", [net.conv(last, width, dead=dead(width), how=how)], alpha=0.1)
    if rng.random() < 0.5:
        return net.graph(net.head(last)), net
    last = net.relu(net.conv(last, 4, stride=4, dead=dead(4), how=how))
    if rng.random() < 0.5:
        last = net.op("Transpose", [last], perm=[0, 2, 3, 1])
    size = int(np.prod(net.shape_of(last)[1:]))
    flat = net.op("Reshape", [last, net.constant(np.array([-1, size], np.int64))])
    hidden = net.relu(net.dense(flat, size, 6, kind="MatMul", dead=dead(6)))
    return net.graph(net.dense(hidden, 6, 3)), net


def mobile(live=6, width=48, seed=0, classes=3, *, bounded=False):
    """A classifier of `patterns` with depthwise and pointwise layers and skips, and `live` live channels.

    The other channels are dead for all of `patterns`, and live only for much brighter images. With `bounded` (ReLU6)
    they are dead for every image. The last layer is fitted by least squares.
    """
    net = Net(seed, channels=1, size=8)
    dead = range(live, width)
    relu = net.relu6 if bounded else net.relu
    last = relu(net.conv("x", width, dead=dead, how=SELDOM))
    for _ in range(2):
        inner = relu(net.deep(last, dead=dead, how=SELDOM))
        last = relu(net.op("Add", [net.conv(inner, width, kernel=1, dead=dead, how=SELDOM), last]))
    flat = net.op("Flatten", [net.op("GlobalAveragePool", [last])])
    images, labels = patterns(200, classes=classes, seed=seed)
    features = Graph(net.model(flat)).run({"x": images})[flat]
    known = np.column_stack([features, np.ones(len(labels))])
    fitted = np.linalg.lstsq(known, 10.0 * np.eye(classes)[labels], rcond=1e-6)[0].astype(np.float32)
    fitted[live:-1] = net.rng.normal(0, 3, (width - live, classes))
    logits = net.op("Gemm", [flat, net.constant(fitted[:-1]), net.constant(fitted[-1])], classes)
    return net.model(net.op("Softmax", [logits], axis=-1))
