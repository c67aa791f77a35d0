"""Small convolutional networks in ONNX: a residual network, and networks of depthwise and pointwise layers."""

import numpy as np
from onnx import helper

from converters.graph.graph import Graph
from tests.simulators.models import model_of


def residual(seed=0):
    """A stem of 3 channels, a block with a skip, a block whose skip is a convolution, a depthwise layer, a head."""
    rng = np.random.default_rng(seed)
    weights, nodes = {}, []

    def conv(x, y, a, b, size=3, stride=1, group=1, name=None):
        weights[f"{y}.w"] = rng.normal(0, 1 / np.sqrt(a / group * size * size), (b, a // group, size, size))
        weights[f"{y}.b"] = rng.normal(0, 0.1, b)
        pads = [size // 2] * 4
        inputs = [x, f"{y}.w", f"{y}.b"]
        nodes.append(helper.make_node("Conv", inputs, [y], name=y, pads=pads, strides=[stride] * 2, group=group))

    def op(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

    conv("x", "stem", 3, 16)
    op("Relu", ["stem"], "r0")
    conv("r0", "c1", 16, 16)
    op("Relu", ["c1"], "r1")
    conv("r1", "c2", 16, 16)
    op("Add", ["c2", "r0"], "sum1")
    op("Relu", ["sum1"], "r2")
    conv("r2", "short", 16, 32, size=1, stride=2)
    conv("r2", "c3", 16, 32, stride=2)
    op("Relu", ["c3"], "r3")
    conv("r3", "c4", 32, 32)
    op("Add", ["c4", "short"], "sum2")
    op("Relu", ["sum2"], "r4")
    conv("r4", "deep", 32, 32, group=32)
    op("Relu", ["deep"], "r5")
    op("MaxPool", ["r5"], "m", kernel_shape=[2, 2], strides=[2, 2])
    conv("m", "c5", 32, 16, size=1)
    op("GlobalAveragePool", ["c5"], "p")
    op("Flatten", ["p"], "f")
    weights["head.w"] = rng.normal(0, 0.3, (16, 10))
    op("Gemm", ["f", "head.w"], "head")
    op("Softmax", ["head"], "y", axis=-1)
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return Graph(model_of(nodes, {"x": ["batch", 3, 16, 16]}, {"y": ["batch", 10]}, weights))


def separable(seed=0):
    """Conv, two pairs of depthwise and pointwise layers with the same weights, pool, dense, softmax."""
    rng = np.random.default_rng(seed)
    nodes, last = [helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], name="first", pads=[1] * 4)], "c0"
    for i in (1, 2):
        nodes += [
            helper.make_node("Relu", [last], [f"r{i}"], name=f"relu{i}"),
            helper.make_node("Conv", [f"r{i}", "wd", "bd"], [f"d{i}"], name=f"deep{i}", group=8, pads=[1] * 4),
            helper.make_node("Relu", [f"d{i}"], [f"s{i}"], name=f"relu{i}b"),
            helper.make_node("Conv", [f"s{i}", "wp", "bp"], [f"p{i}"], name=f"point{i}"),
        ]
        last = f"p{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w9", "b9"], ["logits"], name="last", transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], name="softmax"),
    ]
    shapes = {"w0": (8, 1, 3, 3), "wd": (8, 1, 3, 3), "wp": (8, 8, 1, 1), "w9": (3, 8)}
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    weights.update({f"b{name[1:]}": rng.normal(0, 0.1, w.shape[0]).astype(np.float32) for name, w in weights.items()})
    return Graph(model_of(nodes, {"image": ["batch", 1, 8, 8]}, {"scores": ["batch", 3]}, weights))


def mobile(seed=0, size=32):
    """A strided convolution of 3 channels, five depthwise and pointwise pairs up to 96 channels, pool, dense."""
    rng = np.random.default_rng(seed)
    weights, nodes = {}, []

    def conv(x, y, a, b, width=3, stride=1, group=1):
        shape = (b, a // group, width, width)
        weights[f"{y}.w"] = rng.normal(0, 1 / np.sqrt(a / group * width * width), shape).astype(np.float32)
        weights[f"{y}.b"] = rng.normal(0, 0.1, b).astype(np.float32)
        shape = {"pads": [width // 2] * 4, "strides": [stride] * 2, "group": group}
        nodes.append(helper.make_node("Conv", [x, f"{y}.w", f"{y}.b"], [y], name=y, **shape))
        nodes.append(helper.make_node("Relu", [y], [f"{y}r"], name=f"{y}r"))
        return f"{y}r"

    last, channels = conv("x", "c0", 3, 16, stride=2), 16
    for i, (width, stride) in enumerate([(32, 1), (48, 2), (48, 1), (96, 2), (96, 1)]):
        last = conv(last, f"d{i}", channels, channels, stride=stride, group=channels)
        last, channels = conv(last, f"p{i}", channels, width, width=1), width
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["g"], name="g"))
    nodes.append(helper.make_node("Flatten", ["g"], ["f"], name="f"))
    weights["head"] = rng.normal(0, 0.3, (channels, 10)).astype(np.float32)
    nodes.append(helper.make_node("Gemm", ["f", "head"], ["y"], name="last"))
    return Graph(model_of(nodes, {"x": ["batch", 3, size, size]}, {"y": ["batch", 10]}, weights))
