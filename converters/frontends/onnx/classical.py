"""Rewrites operators of ai.onnx.ml with a standard form: scaling, linear models, and lookups by index.

The exporter of scikit-learn writes them before, behind and in place of dense layers. The definitions are those of
https://onnx.ai/onnx/operators (domain ai.onnx.ml).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.frontends.onnx.nodes import attribute_of, free_name, no_standard_form, taken_names
from converters.frontends.onnx.repair import repaired

DOMAIN = "ai.onnx.ml"
ADVICE = (
    "edgekit converts neural networks, and of classical models only linear ones. Where the operator stands behind a "
    "network, cut it off with --cut OUTPUT[,OUTPUT]."
)
_no_standard_form = functools.partial(no_standard_form, advice=ADVICE)


def rewrite_classical(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with standard operators in place of those of ai.onnx.ml that have a standard form.

    Raises:
        UnsupportedOpError: An operator is used in a way that has no standard form.
    """
    if not any(node.domain == DOMAIN and node.op_type in REWRITERS for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    writer = _Writer(copy)
    nodes = list(model.graph.node)
    del copy.graph.node[:]
    for node in nodes:
        if node.domain == DOMAIN and node.op_type in REWRITERS:
            REWRITERS[node.op_type](writer, node)
        else:
            copy.graph.node.append(node)
    return repaired(copy)  # without the domain that no node uses now


class _Writer:
    """Adds standard nodes and constants to a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._taken = taken_names(model.graph)
        self.read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
        self.made_by = {name: node.op_type for node in model.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return its output, which has a free name where none is given."""
        output = output or free_name(f"{inputs[0]}_{kind}", self._taken)
        self._graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        """Add a constant and return its name."""
        name = free_name("classical", self._taken)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def floats(self, name: str) -> str:
        """The tensor as float32; these operators take any numbers."""
        return self.add("Cast", [name], to=TensorProto.FLOAT)


def _scaler(writer: _Writer, node: Any) -> None:
    moved = writer.add("Sub", [writer.floats(node.input[0]), writer.constant(attribute_of(node, "offset", [0.0]))])
    writer.add("Mul", [moved, writer.constant(attribute_of(node, "scale", [1.0]))], node.output[0])


def _linear(writer: _Writer, node: Any, rows: int, output: str = "") -> str:
    coefficients = np.array(attribute_of(node, "coefficients", []), np.float32)
    intercepts = attribute_of(node, "intercepts", None) or [0.0] * rows
    if len(intercepts) != rows or not coefficients.size or coefficients.size % rows:
        raise _no_standard_form(node, f"it has {len(intercepts)} intercepts for {rows} classes or targets")
    product = writer.add("MatMul", [writer.floats(node.input[0]), writer.constant(coefficients.reshape(rows, -1).T)])
    return writer.add("Add", [product, writer.constant(intercepts)], output)


def _linear_regressor(writer: _Writer, node: Any) -> None:
    _require(node, "post_transform", "NONE", ("NONE",))
    _linear(writer, node, attribute_of(node, "targets", 1), node.output[0])


def _linear_classifier(writer: _Writer, node: Any) -> None:
    classes = attribute_of(node, "classlabels_ints", []) or []
    texts = attribute_of(node, "classlabels_strings", []) or []
    transform = _require(node, "post_transform", "NONE", ("NONE", "SOFTMAX", "LOGISTIC"))
    scores = _linear(writer, node, len(classes or texts))
    if node.output[0] in writer.read:
        if texts:
            raise _no_standard_form(node, "its classes are texts")
        best = writer.add("ArgMax", [scores], axis=1, keepdims=0)
        writer.add("Gather", [writer.constant(classes, np.int64), best], node.output[0])
    if len(node.output) > 1:
        kind = {"SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}.get(transform, "Identity")
        writer.add(kind, [scores], node.output[1], **({"axis": 1} if kind == "Softmax" else {}))


def _normalizer(writer: _Writer, node: Any) -> None:
    norm = _require(node, "norm", "MAX", ("L1", "L2"))
    writer.add("LpNormalization", [writer.floats(node.input[0])], node.output[0], axis=1, p=int(norm[1]))


def _binarizer(writer: _Writer, node: Any) -> None:
    above = writer.add("Greater", [writer.floats(node.input[0]), writer.constant(attribute_of(node, "threshold", 0.0))])
    writer.add("Cast", [above], node.output[0], to=TensorProto.FLOAT)


def _feature_vectorizer(writer: _Writer, node: Any) -> None:
    writer.add("Concat", [writer.floats(name) for name in node.input], node.output[0], axis=1)


def _array_feature_extractor(writer: _Writer, node: Any) -> None:
    """The columns of the last axis; a list counts as one row."""
    values, indices = node.input
    flat = writer.add("Reshape", [indices, writer.constant([-1], np.int64)])
    table = writer.constants.get(values)
    if table is not None and len(table.dims) == 1:
        array = numpy_helper.to_array(table)
        if array.dtype.kind not in "fiub":
            raise _no_standard_form(node, "its values are texts")
        values = writer.constant(array[None], array.dtype)
    writer.add("Gather", [values, flat], node.output[0], axis=-1)


def _label_encoder(writer: _Writer, node: Any) -> None:
    """A lookup by class; numbers that are no key have a default, which a Gather has not."""
    if writer.made_by.get(node.input[0]) not in ("ArgMax", "ArgMin"):
        raise _no_standard_form(node, "its input may hold other values than its keys")
    keys, values = attribute_of(node, "keys_int64s", []), attribute_of(node, "values_int64s", [])
    if not keys or list(keys) != list(range(len(keys))) or len(values) != len(keys):
        raise _no_standard_form(node, "it looks up texts, or numbers that do not count from 0")
    writer.add("Gather", [writer.constant(values, np.int64), node.input[0]], node.output[0])


def _require(node: Any, name: str, default: str, known: Sequence[str]) -> str:
    value = str(attribute_of(node, name, default))
    if value not in known:
        raise _no_standard_form(node, f"its {name} is {value}")
    return value


REWRITERS: dict[str, Callable[[_Writer, Any], None]] = {
    "ArrayFeatureExtractor": _array_feature_extractor,
    "Binarizer": _binarizer,
    "FeatureVectorizer": _feature_vectorizer,
    "LabelEncoder": _label_encoder,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "Scaler": _scaler,
}
