"""What the ONNX backends share: bindings, half precision, and explicit QDQ from our own calibration."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from onnxruntime.transformers.float16 import convert_float_to_float16

from converters.backends.contract import Artifact
from converters.calibration import Calibration
from converters.graph import Graph
from edgekit.errors import ConversionError
from edgekit.manifest import Binding
from edgekit.recipe import Recipe
from edgekit.runtimes import ONNXRUNTIME
from edgekit.runtimes.onnx import OnnxRuntime

# Of ONNX's operator sets to the first ONNX Runtime that has them.
RUNTIME_OF_OPSET = {17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}


def artifact_of(graph: Graph, model: onnx.ModelProto) -> Artifact:
    """The artifact `model`, whose tensors have the canonical `graph`'s names.

    Raises:
        RuntimeLoadError: ONNX Runtime cannot load it.
        ConversionError: its tensors are not the graph's.
    """
    data = model.SerializeToString()
    runtime = OnnxRuntime(data)
    try:
        tensors = {spec.name: spec for spec in (*runtime.inputs, *runtime.outputs)}
    finally:
        runtime.close()
    logical = (*graph.logical_inputs, *graph.logical_outputs)
    missing = [spec.name for spec in logical if spec.name not in tensors]
    if missing:
        raise ConversionError(f"the ONNX artifact lost the tensors {', '.join(missing)}")
    return Artifact(
        file="model.onnx",
        data=data,
        runtime=ONNXRUNTIME,
        inputs=tuple(Binding(spec, tensors[spec.name]) for spec in graph.logical_inputs),
        outputs=tuple(Binding(spec, tensors[spec.name]) for spec in graph.logical_outputs),
        runtime_version=RUNTIME_OF_OPSET.get(Graph(model).opset, ""),
    )


def half(graph: Graph) -> onnx.ModelProto:
    """`graph` in half precision inside, with its float inputs and outputs kept.

    Raises:
        ConversionError: the converter failed.
    """
    model = _copy(graph)
    try:
        return convert_float_to_float16(model, keep_io_types=True)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ConversionError(f"conversion to float16 failed: {type(error).__name__}: {error}") from error


def qdq(
    graph: Graph, calibration: Calibration, recipe: Recipe, *, operators: list[str], options: dict[str, Any]
) -> onnx.ModelProto:
    """`graph` with explicit QuantizeLinear and DequantizeLinear pairs, signed 8 bit for weights and activations.

    Raises:
        ConversionError: a layer that should stay float is not in the graph, or the quantizer failed.
    """
    names = {node.name for node in graph.nodes}
    unknown = [layer for layer in recipe.float_layers if layer not in names]
    if unknown:
        raise ConversionError(f"the recipe keeps {', '.join(unknown)} float, and the graph has no such node")
    ranges = {
        name: (np.float32(low), np.float32(high)) for name, (low, high) in calibration.ranges(recipe.ranges).items()
    }
    level = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)  # it logs advice for its own command line to the root logger
        quantizer = QDQQuantizer(
            save_and_reload_model_with_shape_infer(_copy(graph)),
            recipe.per_channel,
            False,
            QuantType.QInt8,
            QuantType.QInt8,
            TensorsData(CalibrationMethod.MinMax, ranges),
            [],
            list(recipe.float_layers),
            operators,
            {"WeightSymmetric": True, "ActivationSymmetric": recipe.symmetric, **options},
        )
        quantizer.quantize_model()
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ConversionError(f"QDQ quantization failed: {type(error).__name__}: {error}") from error
    finally:
        logging.getLogger().setLevel(level)
    return quantizer.model.model


def _copy(graph: Graph) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    return model
