"""Small ONNX models with several inputs or outputs, in both layouts, and a GRU."""

import numpy as np
from onnx import helper

from converters.graph.graph import Graph
from tests.simulators.models import model_of


def _weights(rng, *shape):
    return rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


def _node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, name=f"{kind}_{outputs[0]}", **attributes)


def gru(seed=0, hidden=12, features=6, steps=5):
    """A bidirectional GRU, with one dense layer on the output of each step."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(0, 0.3, (2, 3 * hidden, features)).astype(np.float32),
        "r": rng.normal(0, 0.3, (2, 3 * hidden, hidden)).astype(np.float32),
        "b": rng.normal(0, 0.1, (2, 6 * hidden)).astype(np.float32),
        "join": np.array([0, 0, -1], np.int64),
        "head": _weights(rng, 2 * hidden, 3),
    }
    nodes = [
        _node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        _node("GRU", ["t", "w", "r", "b"], ["s"], hidden_size=hidden, direction="bidirectional", linear_before_reset=1),
        _node("Transpose", ["s"], ["u"], perm=[2, 0, 1, 3]),
        _node("Reshape", ["u", "join"], ["j"]),
        _node("MatMul", ["j", "head"], ["y"]),
    ]
    return Graph(model_of(nodes, {"x": ["batch", steps, features]}, {"y": ["batch", steps, 3]}, weights))


def detector(seed=0, size=16, classes=3):
    """A detector with two scales: the coarse one is resized and joined to the fine one.

    The outputs are boxes (y, x, h, w) and scores for each cell.
    """
    rng = np.random.default_rng(seed)
    cells = (size // 4) ** 2
    weights = {
        "w0": _weights(rng, 8, 3, 3, 3),
        "b0": _weights(rng, 8),
        "w1": _weights(rng, 12, 8, 3, 3),
        "w2": _weights(rng, 12, 12, 3, 3),
        "w3": _weights(rng, 4 + classes, 24, 1, 1),
        "b3": _weights(rng, 4 + classes),
        "twice": np.array([1, 1, 2, 2], np.float32),
        "rows": np.array([0, 4 + classes, cells], np.int64),
        "parts": np.array([2, 2, classes], np.int64),
        "places": np.stack(np.divmod(np.arange(cells), size // 4), axis=1).astype(np.float32)[None],
        "most": np.float32(4),
        "cell": np.float32(4 / size),
    }
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        _node("Conv", ["image", "w0", "b0"], ["c0"], pads=[1] * 4, strides=[2, 2]),
        _node("LeakyRelu", ["c0"], ["r0"], alpha=0.1),
        _node("Conv", ["r0", "w1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        _node("HardSwish", ["c1"], ["r1"]),
        _node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4, strides=[2, 2]),
        _node("Relu", ["c2"], ["r2"]),
        _node("Resize", ["r2", "", "twice"], ["up"], **nearest),
        _node("Concat", ["up", "r1"], ["both"], axis=1),
        _node("Conv", ["both", "w3", "b3"], ["c3"]),
        _node("Reshape", ["c3", "rows"], ["flat"]),
        _node("Transpose", ["flat"], ["cells"], perm=[0, 2, 1]),
        _node("Split", ["cells", "parts"], ["place", "extent", "class"], axis=2),
        _node("Sigmoid", ["place"], ["inside"]),
        _node("Add", ["inside", "places"], ["centre"]),
        _node("Min", ["extent", "most"], ["bounded"]),
        _node("Exp", ["bounded"], ["grown"]),
        _node("Concat", ["centre", "grown"], ["joined"], axis=2),
        _node("Mul", ["joined", "cell"], ["boxes"]),
        _node("Sigmoid", ["class"], ["scores"]),
    ]
    outputs = {"boxes": ["batch", cells, 4], "scores": ["batch", cells, classes]}
    return Graph(model_of(nodes, {"image": ["batch", 3, size, size]}, outputs, weights))


def two_inputs(seed=0):
    """Two inputs, an image and five numbers; two outputs, a class and a value."""
    rng = np.random.default_rng(seed)
    weights = {
        "w0": _weights(rng, 6, 1, 3, 3),
        "w1": _weights(rng, 6, 5),
        "w2": _weights(rng, 3, 12),
        "w3": _weights(rng, 1, 12),
        "b3": _weights(rng, 1),
    }
    nodes = [
        _node("Conv", ["image", "w0"], ["c0"], strides=[2, 2]),
        _node("Relu", ["c0"], ["r0"]),
        _node("GlobalAveragePool", ["r0"], ["p"]),
        _node("Flatten", ["p"], ["seen"]),
        _node("Gemm", ["numbers", "w1"], ["known"], transB=1),
        _node("Tanh", ["known"], ["felt"]),
        _node("Concat", ["seen", "felt"], ["both"], axis=1),
        _node("Gemm", ["both", "w2"], ["logits"], transB=1),
        _node("Softmax", ["logits"], ["class"], axis=-1),
        _node("Gemm", ["both", "w3", "b3"], ["value"], transB=1),
    ]
    inputs = {"image": ["batch", 1, 10, 10], "numbers": ["batch", 5]}
    return Graph(model_of(nodes, inputs, {"class": ["batch", 3], "value": ["batch", 1]}, weights))


def image_to_image(seed=0):
    """A convolutional autoencoder with channel-last input and output and channel-first layers, as tf2onnx writes it."""
    rng = np.random.default_rng(seed)
    weights = {
        "w0": _weights(rng, 6, 2, 3, 3),
        "b0": _weights(rng, 6),
        "w1": _weights(rng, 6, 4, 2, 2),
        "w2": _weights(rng, 2, 4, 3, 3),
    }
    nodes = [
        _node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        _node("Conv", ["t", "w0", "b0"], ["c0"], pads=[0, 0, 1, 1], strides=[2, 2]),
        _node("Elu", ["c0"], ["r0"]),
        _node("ConvTranspose", ["r0", "w1"], ["c1"], strides=[2, 2]),
        _node("Relu", ["c1"], ["r1"]),
        _node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        _node("Transpose", ["c2"], ["same"], perm=[0, 2, 3, 1]),
    ]
    return Graph(model_of(nodes, {"image": ["batch", 8, 12, 2]}, {"same": ["batch", 8, 12, 2]}, weights))


def joined_detector(seed=0, size=32, classes=3):
    """A detector with boxes (pixels of an image 320 pixels wide) and scores in one output, like most exported ones."""
    rng = np.random.default_rng(seed)
    cells = (size // 4) ** 2
    weights = {
        "w0": _weights(rng, 16, 3, 3, 3),
        "w1": _weights(rng, 16, 16, 3, 3),
        "w2": 3 * _weights(rng, 4, 16, 1, 1),
        "w3": 6 * _weights(rng, classes, 16, 1, 1),
        "b3": np.full(classes, -1, np.float32),
        "boxes": np.array([0, 4, cells], np.int64),
        "scores": np.array([0, classes, cells], np.int64),
        "width": np.float32(320),
    }
    nodes = [
        _node("Conv", ["image", "w0"], ["c0"], pads=[1] * 4, strides=[2, 2]),
        _node("Relu", ["c0"], ["r0"]),
        _node("Conv", ["r0", "w1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        _node("Relu", ["c1"], ["r1"]),
        _node("Conv", ["r1", "w2"], ["c2"]),
        _node("Conv", ["r1", "w3", "b3"], ["c3"]),
        _node("Reshape", ["c2", "boxes"], ["raw"]),
        _node("Sigmoid", ["raw"], ["inside"]),
        _node("Mul", ["inside", "width"], ["pixels"]),
        _node("Reshape", ["c3", "scores"], ["logits"]),
        _node("Sigmoid", ["logits"], ["chances"]),
        _node("Concat", ["pixels", "chances"], ["joined"], axis=1),
        _node("Transpose", ["joined"], ["detections"], perm=[0, 2, 1]),
    ]
    outputs = {"detections": ["batch", cells, 4 + classes]}
    return Graph(model_of(nodes, {"image": ["batch", 3, size, size]}, outputs, weights))


def levels(seed=0, size=16, classes=2):
    """A detector with two levels, like YOLO: each joins boxes and scores of its anchors; both are joined."""
    rng = np.random.default_rng(seed)
    weights = {"w0": _weights(rng, 8, 3, 3, 3), "width": np.float32(320)}
    nodes = [_node("Conv", ["image", "w0"], ["r0"], pads=[1] * 4, strides=[4, 4])]
    cells = [(size // 4) ** 2, (size // 8) ** 2]
    for level, count in enumerate(cells):
        weights[f"w{level + 1}"] = _weights(rng, 2 * (4 + classes), 8, 1, 1)
        weights[f"s{level}"] = np.array([0, 2, 4 + classes, count], np.int64)
        weights[f"e{level}"] = np.array([4, classes], np.int64)
        weights[f"f{level}"] = np.array([0, 2 * count, 4 + classes], np.int64)
        n = f".{level}"
        nodes += [
            _node("Conv", ["r0", f"w{level + 1}"], ["c" + n], strides=[level + 1] * 2),
            _node("Reshape", ["c" + n, f"s{level}"], ["a" + n]),
            _node("Transpose", ["a" + n], ["t" + n], perm=[0, 1, 3, 2]),
            _node("Sigmoid", ["t" + n], ["p" + n]),
            _node("Split", ["p" + n, f"e{level}"], ["inside" + n, "scores" + n], axis=3),
            _node("Mul", ["inside" + n, "width"], ["boxes" + n]),
            _node("Concat", ["boxes" + n, "scores" + n], ["both" + n], axis=-1),
            _node("Reshape", ["both" + n, f"f{level}"], ["flat" + n]),
        ]
    nodes.append(_node("Concat", ["flat.0", "flat.1"], ["detections"], axis=1))
    outputs = {"detections": ["batch", 2 * sum(cells), 4 + classes]}
    return Graph(model_of(nodes, {"image": ["batch", 3, size, size]}, outputs, weights))


def joined_features(ratio=100.0, seed=0):
    """Two joined branches; the values of the first have `ratio` times the range of the second.

    The joined tensor is an output and the input of a layer.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "w0": _weights(rng, 16, 3, 3, 3),
        "wa": ratio * _weights(rng, 16, 16, 3, 3),
        "wb": _weights(rng, 16, 16, 3, 3),
        "wc": _weights(rng, 8, 32, 3, 3),
    }
    weights["wc"][:, :16] /= ratio
    nodes = [
        _node("Conv", ["image", "w0"], ["c0"], pads=[1] * 4, strides=[2, 2]),
        _node("Relu", ["c0"], ["r0"]),
        _node("Conv", ["r0", "wa"], ["ca"], pads=[1] * 4),
        _node("Relu", ["ca"], ["ra"]),
        _node("Conv", ["r0", "wb"], ["cb"], pads=[1] * 4),
        _node("Relu", ["cb"], ["rb"]),
        _node("Concat", ["ra", "rb"], ["both"], axis=1),
        _node("Conv", ["both", "wc"], ["seen"], pads=[1] * 4),
    ]
    outputs = {"seen": ["batch", 8, 8, 8], "both": ["batch", 32, 8, 8]}
    return Graph(model_of(nodes, {"image": ["batch", 3, 16, 16]}, outputs, weights))
