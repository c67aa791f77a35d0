"""Lets litert-quantizer keep embedding tables in float16: it casts weights of dense layers and convolutions only.

A table that GATHER reads gets a DEQUANTIZE, as TFLiteConverter makes it; LiteRT runs it once, when it loads the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from litert_quantizer import qtyping
from litert_quantizer.algorithm_manager import (
    AlgorithmName,
    register_op_quant_config_validation_func,
    register_quantized_op,
)
from litert_quantizer.algorithms.nonlinear_quantize import float_casting
from litert_quantizer.utils import tfl_flatbuffer_utils

LEAST_VALUES = 1024  # smaller tables are not worth an operator
GATHER = qtyping.TFLOperationName.GATHER


def register() -> None:
    """Make FLOAT_CASTING accept GATHER. Calling it again changes nothing."""
    register_op_quant_config_validation_func(AlgorithmName.FLOAT_CASTING, _check)
    register_quantized_op(
        AlgorithmName.FLOAT_CASTING,
        GATHER,
        float_casting.init_qsvs,
        calibration_func=float_casting.calibrate,
        materialize_func=_materialize,
    )


def _check(name: Any, config: Any, policy: Any = None) -> None:
    # a GATHER is cast as an embedding lookup is
    known = qtyping.TFLOperationName.EMBEDDING_LOOKUP if name == GATHER else name
    float_casting.check_op_quantization_config(known, config, policy)


def _materialize(op_info: Any, graph_info: Any, tensor_name_to_qsv: Any, tensor_quant_params_cache: Any) -> list[Any]:
    """The change of each tensor of a GATHER: a large constant table is cast, all others stay."""
    del tensor_name_to_qsv, tensor_quant_params_cache  # the quantizer names its arguments
    found = []
    inputs = [graph_info.subgraph_tensors[index] for index in op_info.op.inputs]
    for position, tensor in enumerate(inputs):
        content = tfl_flatbuffer_utils.get_tensor_data(tensor, graph_info.buffers)
        large = content is not None and content.dtype == np.float32 and content.size >= LEAST_VALUES
        if position == 0 and large:
            half = qtyping.NonLinearQuantParams(num_bits=16, quantized_data=content.astype(np.float16))
            change = qtyping.OpToTensorParams(
                op_info.subgraph_op_index, [qtyping.QuantTransformation.ADD_DEQUANTIZE], half
            )
        else:
            change = _unchanged(op_info)
        name = tfl_flatbuffer_utils.get_tensor_name(tensor)
        found.append(qtyping.TensorTransformationParams(name, consumers=[change]))
    for index in op_info.op.outputs:
        name = tfl_flatbuffer_utils.get_tensor_name(graph_info.subgraph_tensors[index])
        found.append(qtyping.TensorTransformationParams(name, producer=_unchanged(op_info)))
    return found


def _unchanged(operator: Any) -> Any:
    return qtyping.OpToTensorParams(operator.subgraph_op_index, [qtyping.QuantTransformation.NO_QUANTIZE])
