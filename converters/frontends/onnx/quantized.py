"""Recognizes models that are quantized already."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from converters.frontends.onnx.nodes import all_graphs, all_nodes, attribute_of
from converters.frontends.refusals import quantized
from converters.graph.graph import label

OPERATORS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger",
    "QLinearConv", "QLinearMatMul",
    # com.microsoft
    "DequantizeBFP", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulBnb4",
    "MatMulFpQ4", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MulInteger", "QAttention",
    "QEmbedLayerNormalization", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid",
    "QLinearSoftmax", "QLinearWhere", "QMoE", "QOrderedAttention", "QOrderedGelu", "QOrderedLayerNormalization",
    "QOrderedLongformerAttention", "QOrderedMatMul", "QuantizeBFP", "QuantizeWithOrder", "DequantizeWithOrder",
    "ReduceSumInteger",
    # of tools for quantization-aware training
    "FakeQuant", "FakeQuantize", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
    "Quant", "BipolarQuant", "MultiThreshold", "FixedQuantizeLinear", "FixedDequantizeLinear",
}  # fmt: skip
NARROW_TYPES = {
    getattr(TensorProto, name): name.lower()
    for name in (
        "INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2",
        "FLOAT8E5M2FNUZ", "FLOAT8E8M0",
    )
    if hasattr(TensorProto, name)
}  # fmt: skip


def refuse_quantized(model: onnx.ModelProto, source: str) -> None:
    """Check that the model is a float model.

    Raises:
        ModelFormatError: An operator or a weight is quantized; the error names it.
    """
    for node in all_nodes(model.graph):
        if node.op_type in OPERATORS:
            domain = f"{node.domain}::" if node.domain else ""
            raise quantized(source, f"{domain}{node.op_type}", label(node))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in NARROW_TYPES:
            raise quantized(source, f"a tensor of type {NARROW_TYPES[value.type.tensor_type.elem_type]}", value.name)
    for node in all_nodes(model.graph):
        to = attribute_of(node, "to", 0) if node.op_type == "Cast" else 0
        if to in NARROW_TYPES:
            raise quantized(source, f"Cast to {NARROW_TYPES[to]}", label(node))
    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type in NARROW_TYPES:
                raise quantized(source, f"a weight of type {NARROW_TYPES[tensor.data_type]}", tensor.name)
