"""Files of the stock tools for one model of the benchmark `wild`, and their distances from the source.

`python -m benchmarks.wild_stock NAME EXPECTED [TOOL ...]` leaves out the tools that are known to end the process, and
prints JSON: {tool: {"bytes", "distances", "changed"} or {"error"}} for TFLiteConverter, litert-quantizer, the
quantization of ONNX Runtime, and onnx2tf where its environment can be made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers, wild_judge
from benchmarks.wild_models import MODELS, TOOL_MARK, Wild

CALIBRATION_ROWS = 100
PRESETS = ("static_wi8_ai8", "dynamic_wi8_afp32", "weight_only_wi8_afp32", "dynamic_wi4_afp32")
OPSET = 17
ONNX2TF_SECONDS = 900
Found = dict[str, dict[str, Any]]


def main() -> None:
    """Make and judge every file. The tools' own output goes to stderr."""
    wild, found = MODELS[sys.argv[1]], Found()
    with np.load(sys.argv[2]) as data:
        expected = {name: data[name] for name in data.files}
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as name:
        folder, judge = Path(name), _Judge(wild, expected, found, sys.argv[3:])
        if wild.file == "model.keras":
            _from_keras(wild, folder, judge)
        else:
            _from_onnx(wild, _fixed(wild, folder / "fixed.onnx"), folder, judge)
    print(json.dumps(found))


class _Judge:
    """Judges files as they are made, and notes the tools that fail."""

    def __init__(self, wild: Wild, expected: wild_judge.Answers, found: Found, crashed: Collection[str]) -> None:
        self._wild, self._expected, self._found, self._crashed = wild, expected, found, crashed
        self.rows = wild_judge.samples(wild, "data")[:CALIBRATION_ROWS]
        self._test = wild_judge.samples(wild, "test")

    def file(self, tool: str, make: Callable[[], Path]) -> Path | None:
        """Make a file with `make` and judge it. Returns its path; None where the tool fails."""
        if tool in self._crashed:
            self._found[tool] = {"error": "the tool ends its process"}
            return None
        print(f"{TOOL_MARK}{tool}", file=sys.stderr, flush=True)
        try:
            path = make()
            answers = self._answers(path)
        except Exception as error:  # a tool may raise anything; the benchmark notes it and goes on
            text = str(error).strip().splitlines() or [""]
            self._found[tool] = {"error": f"{type(error).__name__}: {text[0][:200]}"}
            return None
        self._found[tool] = {
            "bytes": path.stat().st_size,
            "distances": wild_judge.distances(answers, self._expected),
            "changed": wild_judge.changed(answers, self._expected),
        }
        return path

    def _answers(self, path: Path) -> wild_judge.Answers:
        if path.suffix == ".onnx":
            step = wild_judge.onnx_step(path, self._wild)
        else:
            step = wild_judge.tflite_step(path, [values.shape[1:] for values in self._expected.values()])
        answers = wild_judge.run(step, self._test)
        if answers.keys() == self._expected.keys():
            return answers
        return dict(zip(self._expected, answers.values(), strict=True))  # the tool has named them anew, in their order


def _from_keras(wild: Wild, folder: Path, judge: _Judge) -> None:
    """TFLiteConverter with a batch of 1, litert-quantizer on its float file, and tf2onnx with ONNX Runtime."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = tf.keras.models.load_model(wild.folder / wild.file)
    names = [one.name for one in model.inputs]

    def call(*inputs: Any) -> dict[str, Any]:
        answers = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
        answers = answers if isinstance(answers, list | tuple) else [answers]
        return {f"y{index}": answer for index, answer in enumerate(answers)}

    specs = [tf.TensorSpec((1, *one.shape[1:]), one.dtype, name=one.name) for one in model.inputs]
    # With variables, TFLiteConverter writes files of some Keras 3 models without their values.
    frozen = convert_variables_to_constants_v2(tf.function(call, input_signature=specs).get_concrete_function())
    module = tf.Module()
    module.serve = tf.function(lambda *inputs: frozen(*inputs), input_signature=specs)
    tf.saved_model.save(module, str(folder / "saved"), signatures=module.serve)

    def rows() -> Iterator[dict[str, Any]]:
        for row in judge.rows:
            yield {name: np.asarray(row.get(name, row.get("x")))[None] for name in names}

    for kind in ("float32", "float16", "dynamic int8", "static int8"):
        judge.file(f"TFLiteConverter {kind}", functools.partial(_converted, folder, kind, rows))
    _presets(folder / "TFLiteConverter float32.tflite", rows, judge)
    _tf2onnx(call, specs, folder, judge)


def _converted(folder: Path, kind: str, rows: Callable[[], Iterator[dict[str, Any]]]) -> Path:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "static int8":
        converter.representative_dataset = rows
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    path = folder / f"TFLiteConverter {kind}.tflite"
    path.write_bytes(converter.convert())
    return path


def _presets(source: Path, rows: Callable[[], Iterator[dict[str, Any]]], judge: _Judge) -> None:
    from litert_quantizer import quantizer, recipe

    def quantized(preset: str) -> Path:
        tool = quantizer.Quantizer(str(source), getattr(recipe, preset)())
        ranges = tool.calibrate({"serving_default": list(rows())}) if tool.need_calibration else None
        path = source.with_name(f"{preset}.tflite")
        path.write_bytes(bytes(tool.quantize(ranges).quantized_model))
        return path

    for preset in PRESETS if source.exists() else ():
        judge.file(f"litert-quantizer {preset}", functools.partial(quantized, preset))


def _tf2onnx(call: Any, specs: list[Any], folder: Path, judge: _Judge) -> None:
    def convert() -> Path:
        import tensorflow as tf
        import tf2onnx

        path = folder / "float.onnx"
        function = tf.function(lambda *inputs: list(call(*inputs).values()), input_signature=specs)
        tf2onnx.convert.from_function(function, input_signature=specs, opset=OPSET, output_path=str(path))
        return path

    source = judge.file("tf2onnx float32", convert)
    if source is not None:
        _ort(source, folder, judge)


def _fixed(wild: Wild, path: Path) -> Path:
    """The ONNX file with the shapes of one sample, which tools without free axes need.

    Shapes of outputs and inner tensors are removed where they may no longer hold; the tools infer them.
    """
    import onnx

    model = onnx.load(wild.folder / "model.onnx")
    for tensor in model.graph.input:
        for dim, size in zip(tensor.type.tensor_type.shape.dim, wild.fixed.get(tensor.name, ()), strict=False):
            dim.dim_value = size  # also clears the symbol
    if wild.fixed:
        del model.graph.value_info[:]
        for tensor in model.graph.output:
            for dim in tensor.type.tensor_type.shape.dim:
                dim.Clear()
    onnx.save(model, path)
    return path


def _from_onnx(wild: Wild, source: Path, folder: Path, judge: _Judge) -> None:
    judge.file("ONNX file itself", lambda: source)
    _ort(source, folder, judge, wild)
    reason = peers.make("onnx2tf")
    if reason:
        judge.file("onnx2tf", lambda: _missing(reason))
        return
    # It downloads images for its own checks where they are not in the working folder; others serve as well.
    images = np.random.default_rng(0).uniform(0, 1, (20, 128, 128, 3)).astype(np.float32)
    np.save(folder / "calibration_image_sample_data_20x128x128x3_float32.npy", images)
    command = [str(peers.python_of("onnx2tf")), "-m", "onnx2tf", "-i", str(source), "-o", str(folder / "tf"), "-n"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=folder, capture_output=True, timeout=ONNX2TF_SECONDS)
    for kind in ("float32", "float16"):
        judge.file(f"onnx2tf {kind}", functools.partial(Path, folder, "tf", f"{source.stem}_{kind}.tflite"))


def _missing(reason: str) -> Path:
    raise RuntimeError(reason)


def _ort(source: Path, folder: Path, judge: _Judge, wild: Wild | None = None) -> None:
    """ONNX Runtime's dynamic and static quantization, the latter with QDQ and scales per channel."""
    from onnxruntime import quantization

    prepared = folder / "prepared.onnx"

    def dynamic() -> Path:
        quantization.quantize_dynamic(str(prepared), str(folder / "dynamic.onnx"), per_channel=True)
        return folder / "dynamic.onnx"

    def static() -> Path:
        reader = _Rows(prepared, judge.rows, wild.zeros if wild else {})
        quantization.quantize_static(str(prepared), str(folder / "static.onnx"), reader, per_channel=True)
        return folder / "static.onnx"

    try:
        quantization.quant_pre_process(str(source), str(prepared))
    except Exception:  # its shape inference refuses some models; the quantizers may still take them
        prepared = source
    judge.file("onnxruntime quantize_dynamic", dynamic)
    judge.file("onnxruntime quantize_static", static)


class _Rows:
    """A CalibrationDataReader (its base class is checked by its method only)."""

    def __init__(self, path: Path, rows: list[dict[str, Any]], zeros: dict[str, tuple[int, ...]]) -> None:
        import onnx

        inputs = [one.name for one in onnx.load(path).graph.input]
        state = {name: np.zeros(shape, np.float32) for name, shape in zeros.items() if name in inputs}
        self._feeds = iter([{**state, **self._named(row, inputs)} for row in rows])

    @staticmethod
    def _named(row: dict[str, Any], inputs: list[str]) -> dict[str, Any]:
        named = {name if name in inputs else inputs[0]: np.asarray(values) for name, values in row.items()}
        return {name: values[None] if values.ndim else values for name, values in named.items() if name in inputs}

    def get_next(self) -> dict[str, Any] | None:
        """The next sample; None at the end."""
        return next(self._feeds, None)

    def __iter__(self) -> _Rows:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._feeds)


if __name__ == "__main__":
    main()
