"""Rewrites ONNX Runtime's own operators (com.microsoft) that have a standard form.

ONNX Runtime writes them where it saves an optimized model. https://onnxruntime.ai has their definitions in
ContribOperators.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.frontends.onnx import contrib_attention
from converters.frontends.onnx.nodes import attribute_of, free_name, no_standard_form, taken_names
from converters.frontends.onnx.opset import opset_of
from converters.frontends.onnx.repair import repaired
from converters.frontends.onnx.shapes import known_shapes
from edgekit.tensors import Array

DOMAIN = "com.microsoft"
# Operators that are the standard ones under another domain, with the first operator set that has them.
SAME = {"GatherND": 11, "GridSample": 16, "Range": 11, "Trilu": 14}
LAYER_NORM_OPSET = 17
GROUP_NORM_OPSETS = range(18, 21)  # ONNX withdrew this form, with a scale for each group; ONNX Runtime still runs it
EPSILON = 1e-5
OPTIMIZED_ADVICE = (
    "ONNX Runtime wrote this operator when it optimized the model: give the .onnx file from before, or export the "
    "model again without optimization."
)
_no_standard_form = functools.partial(no_standard_form, advice=OPTIMIZED_ADVICE)


def rewrite_contrib(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model with standard operators in place of those of com.microsoft that have a standard form.

    Raises:
        UnsupportedOpError: An operator is used in a way that has no standard form.
        ModelFormatError: A node does not accept its inputs.
    """
    if not any(_is_contrib(node, model) for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(model.graph.node)
    writer = _Writer(copy, source)
    del copy.graph.node[:]
    for node in nodes:
        if _is_contrib(node, model):
            REWRITERS.get(node.op_type, _renamed)(writer, node)
        else:
            copy.graph.node.append(node)
    return repaired(copy)  # without the domain that no node uses now


def _is_contrib(node: Any, model: onnx.ModelProto) -> bool:
    """True for an operator that is rewritten here, also norms in ONNX's own domain that its operator set lacks."""
    if node.domain == DOMAIN:
        return node.op_type in REWRITERS or opset_of(model) >= SAME.get(node.op_type, 1000)
    early = node.op_type == "LayerNormalization" and opset_of(model) < LAYER_NORM_OPSET
    by_group = node.op_type == "GroupNormalization" and opset_of(model) in GROUP_NORM_OPSETS
    return not node.domain and (early or by_group or node.op_type == "SimplifiedLayerNormalization")


class _Writer:
    """Adds standard nodes to a model. Tensors that nodes share are named by their text."""

    def __init__(self, model: onnx.ModelProto, source: str) -> None:
        self._model, self._source = model, source
        self._taken = taken_names(model.graph)
        self.opset = opset_of(model)

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return its output, which has a free name where none is given."""
        output = output or free_name(f"{inputs[0]}_{kind}", self._taken)
        self._model.graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def number(self, value: float) -> str:
        """A float32 scalar."""
        name = free_name("number", self._taken)
        self._model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
        return name

    def constant(self, value: Array) -> str:
        """A constant."""
        name = free_name("constant", self._taken)
        self._model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def value(self, tensor: str) -> Array | None:
        """The value of a constant; None where the tensor is computed."""
        made = next((one for one in self._model.graph.initializer if one.name == tensor), None)
        return None if made is None else numpy_helper.to_array(made)

    def width(self, tensor: str) -> int | None:
        """Size of the last axis; None where it is not known."""
        shape = known_shapes(self._model, self._source).get(tensor)
        return shape[-1] if shape else None

    def refusal(self, node: Any, why: str) -> Exception:
        """The error for an operator that has no standard form."""
        return _no_standard_form(node, why)

    def rank(self, tensor: str, node: Any) -> int:
        """Number of axes of a tensor. Raises UnsupportedOpError where it is not known."""
        shape = known_shapes(self._model, self._source).get(tensor)
        weight = next((one for one in self._model.graph.initializer if one.name == tensor), None)
        if shape is None and weight is None:
            raise _no_standard_form(node, f"the number of axes of {tensor} is not known")
        return len(weight.dims) if weight is not None else len(shape or ())

    def activate(self, node: Any, tensor: str, output: str, kind: str, values: list[float]) -> None:
        """Add the activation of a fused operator."""
        names = {"LeakyRelu": ["alpha"], "HardSigmoid": ["alpha", "beta"], "Elu": ["alpha"]}
        if kind == "Clip":
            self.clip(tensor, output, values[0], values[1])
        elif kind in ("Relu", "Tanh", "Sigmoid", *names):
            self.add(kind, [tensor], output, **dict(zip(names.get(kind, []), values, strict=False)))
        else:
            raise _no_standard_form(node, f"its activation is {kind}")

    def mean(self, tensor: str, axes: list[int]) -> str:
        """The mean over `axes`, which stay with size 1."""
        if self.opset < 18:
            return self.add("ReduceMean", [tensor], axes=axes, keepdims=1)
        name = free_name("axes", self._taken)
        self._model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
        return self.add("ReduceMean", [tensor, name], keepdims=1)

    def copy(self, node: Any) -> None:
        """Add a node of ONNX's own domain."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.domain = ""
        self._model.graph.node.append(made)

    def clip(self, tensor: str, output: str, low: float, high: float) -> None:
        """Add a Clip."""
        if self.opset < 11:
            self.add("Clip", [tensor], output, min=low, max=high)
        else:
            self.add("Clip", [tensor, self.number(low), self.number(high)], output)


def _renamed(writer: _Writer, node: Any) -> None:
    writer.copy(node)


def _gelu(writer: _Writer, node: Any) -> None:
    inputs = [name for name in node.input if name]
    x = writer.add("Add", inputs) if len(inputs) > 1 else inputs[0]
    scaled = writer.add("Div", [x, writer.number(math.sqrt(2.0))])
    one = writer.add("Add", [writer.add("Erf", [scaled]), writer.number(1.0)])
    writer.add("Mul", [writer.add("Mul", [x, one]), writer.number(0.5)], node.output[0])


def _fast_gelu(writer: _Writer, node: Any) -> None:
    """0.5 x (1 + tanh(0.7978845608 (x + 0.044715 x^3))), the approximation of D. Hendrycks and K. Gimpel (2016)."""
    inputs = [name for name in node.input if name]
    x = writer.add("Add", inputs) if len(inputs) > 1 else inputs[0]
    cubed = writer.add("Mul", [writer.add("Mul", [x, x]), x])
    inner = writer.add("Add", [x, writer.add("Mul", [cubed, writer.number(0.044715)])])
    bent = writer.add("Tanh", [writer.add("Mul", [inner, writer.number(math.sqrt(2.0 / math.pi))])])
    one = writer.add("Add", [bent, writer.number(1.0)])
    writer.add("Mul", [writer.add("Mul", [x, one]), writer.number(0.5)], node.output[0])


def _quick_gelu(writer: _Writer, node: Any) -> None:
    alpha = writer.number(attribute_of(node, "alpha", 1.702))
    gate = writer.add("Sigmoid", [writer.add("Mul", [node.input[0], alpha])])
    writer.add("Mul", [node.input[0], gate], node.output[0])


def _fused_conv(writer: _Writer, node: Any) -> None:
    own = {"activation", "activation_params"}
    values = {one.name: helper.get_attribute_value(one) for one in node.attribute if one.name not in own}
    inputs = list(node.input)
    added = inputs[3] if len(inputs) > 3 else ""
    kind = attribute_of(node, "activation", "")
    last = node.output[0]
    result = writer.add(
        "Conv", inputs[: 3 if len(inputs) > 2 and inputs[2] else 2], "" if kind or added else last, **values
    )
    if added:
        result = writer.add("Add", [result, added], "" if kind else last)
    if kind:
        writer.activate(node, result, last, kind, list(attribute_of(node, "activation_params", [])))


def _fused_gemm(writer: _Writer, node: Any) -> None:
    own = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
    values = {one.name: helper.get_attribute_value(one) for one in node.attribute if one.name not in own}
    kind = attribute_of(node, "activation", "")
    result = writer.add("Gemm", list(node.input), "" if kind else node.output[0], **values)
    if kind:
        ends = [attribute_of(node, name, 0.0) for name in own[1:3]]
        writer.activate(node, result, node.output[0], kind, ends)


def _fused_matmul(writer: _Writer, node: Any) -> None:
    if attribute_of(node, "transBatchA", 0) or attribute_of(node, "transBatchB", 0):
        raise _no_standard_form(node, "it transposes the batch")
    sides = []
    for name, side in zip(node.input, ("transA", "transB"), strict=False):
        if attribute_of(node, side, 0) and (rank := writer.rank(name, node)) > 1:
            name = writer.add("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2])
        sides.append(name)
    alpha, kind = attribute_of(node, "alpha", 1.0), attribute_of(node, "activation", "")
    last = node.output[0]
    result = writer.add("MatMul", sides, last if alpha == 1.0 and not kind else "")
    if alpha != 1.0:
        result = writer.add("Mul", [result, writer.number(alpha)], "" if kind else last)
    if kind:
        ends = [attribute_of(node, f"activation_{name}", 0.0) for name in ("alpha", "beta")]
        writer.activate(node, result, last, kind, ends)


def _norm(writer: _Writer, node: Any, x: str, scale: str, bias: str, *, centered: bool) -> None:
    """Layer norm over the axes from `axis` on, or root-mean-square norm without `centered`."""
    epsilon, axis = attribute_of(node, "epsilon", EPSILON), attribute_of(node, "axis", -1)
    if centered and writer.opset >= LAYER_NORM_OPSET:
        inputs = [x, scale, bias] if bias else [x, scale]
        writer.add("LayerNormalization", inputs, node.output[0], axis=axis, epsilon=epsilon)
        return
    axes = list(range(axis, 0)) if axis < 0 else list(range(axis, writer.rank(x, node)))
    if centered:
        x = writer.add("Sub", [x, writer.mean(x, axes)])
    variance = writer.mean(writer.add("Mul", [x, x]), axes)
    root = writer.add("Sqrt", [writer.add("Add", [variance, writer.number(epsilon)])])
    scaled = writer.add("Mul", [writer.add("Div", [x, root]), scale], "" if bias else node.output[0])
    if bias:
        writer.add("Add", [scaled, bias], node.output[0])


def _layer_norm(writer: _Writer, node: Any) -> None:
    _require_one_output(node)
    centered = node.op_type == "LayerNormalization"
    bias = node.input[2] if len(node.input) > 2 else ""
    _norm(writer, node, node.input[0], node.input[1], bias, centered=centered)


def _group_norm(writer: _Writer, node: Any) -> None:
    """Each group is a channel of an instance norm."""
    x, scale, bias = node.input
    groups = int(attribute_of(node, "num_groups", 1))
    rows = writer.add("Reshape", [x, writer.constant(np.array([0, groups, -1], np.int64))])
    normed = writer.add("InstanceNormalization", [rows, scale, bias], epsilon=attribute_of(node, "epsilon", EPSILON))
    writer.add("Reshape", [normed, writer.add("Shape", [x])], node.output[0])


def _skip_layer_norm(writer: _Writer, node: Any) -> None:
    """Sum of input, skip and bias, then a norm; the sum may be the fourth output."""
    centered = node.op_type == "SkipLayerNormalization"
    if any(node.output[1:3]):
        raise _no_standard_form(node, "its mean or variance is used")
    inputs = [*node.input, "", "", ""]
    beta, bias = (inputs[3], inputs[4]) if centered else ("", inputs[3])
    wanted = node.output[3] if len(node.output) > 3 else ""
    total = writer.add("Add", list(node.input[:2]), "" if bias else wanted)
    total = writer.add("Add", [total, bias], wanted) if bias else total
    _norm(writer, node, total, node.input[2], beta, centered=centered)


def _bias_add(writer: _Writer, node: Any) -> None:
    writer.add("Add", [writer.add("Add", list(node.input[:2])), node.input[2]], node.output[0])


def _require_one_output(node: Any) -> None:
    if any(node.output[1:]):
        raise _no_standard_form(node, "its mean or variance is used")


def _embed_layer_norm(writer: _Writer, node: Any) -> None:
    total, scale, bias, epsilon = contrib_attention.embed_layer_normalization(writer, node)
    norm = helper.make_node("LayerNormalization", [total, scale, bias], [node.output[0]], axis=-1, epsilon=epsilon)
    _norm(writer, norm, total, scale, bias, centered=True)


REWRITERS: dict[str, Callable[[_Writer, Any], None]] = {
    "Attention": contrib_attention.attention,
    "BiasAdd": _bias_add,
    "BiasGelu": _gelu,
    "EmbedLayerNormalization": _embed_layer_norm,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "FusedMatMulActivation": _fused_matmul,
    "Gelu": _gelu,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "MultiHeadAttention": contrib_attention.multi_head_attention,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_layer_norm,
    "TransposeMatMul": _fused_matmul,
}
