"""Converts a SavedModel or a .keras file with the stock tools, in a separate process.

`python -m benchmarks.convert_stock MODEL DATA FOLDER` writes one file for each tool into FOLDER and prints a JSON
object: file name -> seconds of wall time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf2onnx
from litert_quantizer import quantizer, recipe
from onnxruntime import quantization

from converters.frontends.tensorflow.legacy import frozen_saved_model

CALIBRATION_ROWS = 100
OPSET = 17
PRESETS = ("static_wi8_ai8", "dynamic_wi8_afp32", "weight_only_wi8_afp32", "dynamic_wi4_afp32")


def main() -> None:
    """Run every tool. Progress goes to stderr."""
    model, data, folder = (Path(argument) for argument in sys.argv[1:4])
    rows = np.load(data)["x"][:CALIBRATION_ROWS]
    seconds: dict[str, float] = {}
    call, name, spec = _load(model)
    with contextlib.redirect_stdout(sys.stderr):
        saved = _with_batch_of_1(call, spec, folder)
        _litert(saved, rows, folder, seconds)
        _presets(folder / "TFLiteConverter float32.tflite", rows, folder, seconds)
        _onnx(call, tf.TensorSpec(spec.shape, spec.dtype, name=name), rows, folder, seconds)
    print(json.dumps(seconds))


def _load(model: Path) -> tuple[Callable[..., list[Any]], str, Any]:
    """The model as a function of one input, with the name and the spec of the input."""
    if model.suffix == ".keras":
        network = tf.keras.models.load_model(model)
        source = network.inputs[0]
        frozen = _freeze(network, source)
        return lambda x: [frozen(x)[0]], source.name, tf.TensorSpec(source.shape, source.dtype)
    # tf.saved_model.load fails on the model's optimizer slots
    call, specs, _ = frozen_saved_model(str(model), tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY)
    ((name, spec),) = specs.items()
    return call, name, spec


def _freeze(network: Any, source: Any) -> Any:
    """The network as one function with constant weights, like the result of `frozen_saved_model`."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec(source.shape, source.dtype)
    function = tf.function(lambda x: network(x, training=False), input_signature=[spec])
    return convert_variables_to_constants_v2(function.get_concrete_function())


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun


def _with_batch_of_1(call: Callable[..., list[Any]], spec: Any, folder: Path) -> str:
    module = tf.Module()
    shape = [1, *spec.shape[1:]]
    module.serve = tf.function(
        lambda x: {"y": call(x)[0]}, input_signature=[tf.TensorSpec(shape, spec.dtype, name="x")]
    )
    path = str(folder / "saved")
    tf.saved_model.save(module, path, signatures=module.serve)
    return path


def _litert(saved: str, rows: Any, folder: Path, seconds: dict[str, float]) -> None:
    def samples() -> Iterator[list[Any]]:
        for row in rows:
            yield [row[None]]

    for kind in ("float32", "dynamic int8", "static int8"):
        name = f"TFLiteConverter {kind}.tflite"
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "static int8":
            converter.representative_dataset = samples
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        with _timed(seconds, name):
            data = converter.convert()
        (folder / name).write_bytes(data)


def _presets(float_file: Path, rows: Any, folder: Path, seconds: dict[str, float]) -> None:
    for preset in PRESETS:
        name = f"litert-quantizer {preset}.tflite"
        with _timed(seconds, name):
            tool = quantizer.Quantizer(str(float_file), getattr(recipe, preset)())
            samples = {"serving_default": [{"x": row[None]} for row in rows]}
            ranges = tool.calibrate(samples) if tool.need_calibration else None
            data = tool.quantize(ranges).quantized_model
        (folder / name).write_bytes(bytes(data))


class _Rows(quantization.CalibrationDataReader):
    def __init__(self, name: str, rows: Any) -> None:
        self._rows = iter({name: row[None]} for row in rows)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def _onnx(call: Callable[..., list[Any]], spec: Any, rows: Any, folder: Path, seconds: dict[str, float]) -> None:
    source, prepared, name = folder / "float.onnx", folder / "prepared.onnx", "onnxruntime quantize_static.onnx"
    function = tf.function(lambda x: call(x)[0], input_signature=[spec])
    tf2onnx.convert.from_function(function, input_signature=[spec], opset=OPSET, output_path=str(source))
    with _timed(seconds, name):
        quantization.quant_pre_process(str(source), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(folder / name),
            _Rows(spec.name, rows),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )


if __name__ == "__main__":
    main()
