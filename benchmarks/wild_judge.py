"""Judges files of the benchmark `wild` with plain runtimes, without edgekit's adapters.

`python -m benchmarks.wild_judge MODEL PART OUT` writes the source model's answers to the samples of PART into OUT.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.wild_models import MODELS, Wild

ROUNDING = 16 * 2.0**-23  # of float32, in a deep network
Answers = dict[str, Any]  # output -> array, samples along the first axis
Step = Callable[[dict[str, Any]], dict[str, Any]]


def distances(answers: Answers, expected: Answers) -> dict[str, float]:
    """By output: the mean distance from the expected answers, in units of their own spread.

    The spread is the root mean square distance of the expected answers from their mean; of answers that differ by
    rounding only it is their root mean square.
    """
    found = {}
    for name, right in expected.items():
        right = right.astype(np.float64).reshape(len(right), -1)
        given = answers[name].astype(np.float64).reshape(right.shape)
        spread = np.sqrt(((right - right.mean(axis=0)) ** 2).sum(axis=1).mean())
        size = np.sqrt((right**2).sum(axis=1).mean())
        spread = spread if spread > ROUNDING * size else size
        error = np.linalg.norm(given - right, axis=1).mean()
        found[name] = float(error / spread) if spread > 0 else float(error)
    return found


def changed(answers: Answers, expected: Answers) -> dict[str, float]:
    """By output with two or more scores per sample: the share of samples whose largest score has another place."""
    return {
        name: float(np.mean(right.argmax(axis=-1) != answers[name].reshape(right.shape).argmax(axis=-1)))
        for name, right in expected.items()
        if right.ndim == 2 and right.shape[1] > 1
    }


def samples(wild: Wild, part: str) -> list[dict[str, Any]]:
    """The samples of a part, each as an array per input without a batch; inputs given once are in each."""
    with np.load(wild.folder / f"{part}.npz") as data:
        arrays = {name: data[name] for name in data.files}
    rows = max(len(values) for values in arrays.values() if values.ndim)
    return [{name: values[row] if values.ndim else values for name, values in arrays.items()} for row in range(rows)]


def run(step: Step, rows: list[dict[str, Any]]) -> Answers:
    """All answers of `step`, which takes and gives one sample."""
    answers = [step(row) for row in rows]
    return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}


def onnx_step(path: Path, wild: Wild) -> Step:
    """Run an ONNX file on ONNX Runtime, one sample a call. Samples named ``x`` go to its only input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.x64quantprecision", "1")  # without it, x86 saturates int8
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {one.name: one for one in session.get_inputs()}
    outputs = [one.name for one in session.get_outputs()]

    def step(row: dict[str, Any]) -> dict[str, Any]:
        feeds = {name: np.zeros(shape, np.float32) for name, shape in wild.zeros.items() if name in inputs}
        for name, values in row.items():
            target = inputs[name] if name in inputs else next(iter(inputs.values()))
            if name in inputs or name == "x":
                dtype = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}
                values = np.asarray(values, dtype.get(target.type, np.float32))
                feeds[target.name] = values[None] if values.ndim else values
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    return step


def keras_step(path: Path) -> Step:
    """Run a Keras file, one sample a call."""
    import keras
    import tensorflow as tf

    model = keras.models.load_model(path)
    call = tf.function(lambda values: model(values, training=False))
    names = [one.name for one in model.inputs]
    outputs = getattr(model, "output_names", None) or [f"output_{index}" for index in range(len(model.outputs))]

    def step(row: dict[str, Any]) -> dict[str, Any]:
        values = [np.asarray(row.get(name, row.get("x")))[None] for name in names]
        answers = call(values if len(values) > 1 else values[0])
        answers = answers if isinstance(answers, list | tuple) else [answers]
        return {name: np.asarray(answer) for name, answer in zip(outputs, answers, strict=True)}

    return step


def tflite_step(path: Path, expected: list[tuple[int, ...]]) -> Step:
    """Run a stock .tflite, one sample a call. Images are turned to its layout, and outputs back to that of `expected`.

    Inputs are matched by name where names agree, and otherwise by order; outputs by the order of the signature.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=2)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), _ordered_outputs(interpreter)

    def step(row: dict[str, Any]) -> dict[str, Any]:
        names = list(row)
        for index, detail in enumerate(inputs):
            match = next((name for name in names if name == _plain(detail["name"])), names[min(index, len(names) - 1)])
            values = _turned(np.asarray(row[match])[None], tuple(detail["shape"]))
            interpreter.set_tensor(detail["index"], _quantized(values, detail))
        interpreter.invoke()
        return {
            str(index): _turned(_real(interpreter.get_tensor(detail["index"]), detail), (1, *shape))
            for index, (detail, shape) in enumerate(zip(outputs, expected, strict=True))
        }

    return step


def _plain(name: str) -> str:
    return name.removeprefix("serving_default_").partition(":")[0]


def _ordered_outputs(interpreter: Any) -> list[Any]:
    """The outputs in the order of the signature's names, y0, y1, ..., where there is such a signature."""
    details = {detail["index"]: detail for detail in interpreter.get_output_details()}
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return list(details.values())
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    by_name = runner.get_output_details()
    return [by_name[name] for name in sorted(by_name)]


def _turned(values: Any, shape: tuple[int, ...]) -> Any:
    """`values` in the layout of `shape`: as they are but for axes of size 1, or with the channels first or last."""
    if values.ndim < 3 or [size for size in values.shape if size > 1] == [size for size in shape if size > 1]:
        return values.reshape(shape)
    for axes in ((0, *range(2, values.ndim), 1), (0, values.ndim - 1, *range(1, values.ndim - 1))):
        if values.transpose(axes).shape == shape:
            return values.transpose(axes)
    raise ValueError(f"shape {values.shape} does not become {shape}")


def _quantized(values: Any, detail: Any) -> Any:
    dtype, (scale, zero) = detail["dtype"], detail["quantization"]
    if scale and np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def _real(values: Any, detail: Any) -> Any:
    scale, zero = detail["quantization"]
    return (values.astype(np.float32) - zero) * scale if scale else values.astype(np.float32)


def bundle_step(folder: Path) -> Step:
    """Run the artifact of a bundle on its plain runtime; the manifest says how tensors map."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    path = folder / next(entry["path"] for entry in manifest["files"] if entry["role"] == "model")
    call = _litert_call(path) if manifest["runtime"] == "litert" else _onnx_call(path)

    def step(row: dict[str, Any]) -> dict[str, Any]:
        feeds = {}
        for binding in manifest["inputs"]:
            artifact, name = binding["artifact"], binding["spec"]["name"]
            shape = [size or 1 for size in artifact["shape"]]
            if binding.get("state") is not None:
                feeds[artifact["name"]] = np.zeros(shape, artifact["dtype"])
                continue
            if "value" in binding or "unread" in binding or (name not in row and "x" not in row):
                continue  # an input that the artifact does not have
            values = np.asarray(row.get(name, row.get("x")))
            values = values[None] if None in binding["spec"]["shape"] else values
            if binding["permute"]:
                values = values.transpose(binding["permute"])
            feeds[artifact["name"]] = _to_artifact(values.reshape(shape), binding)
        found = call(feeds)
        return {binding["spec"]["name"]: _to_logical(binding, found) for binding in manifest["outputs"]}

    return step


def _to_artifact(values: Any, binding: Any) -> Any:
    dtype = np.dtype(binding["artifact"]["dtype"])
    if binding["scale"] is None:
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    steps = np.round(values.astype(np.float64) / binding["scale"]) + binding["zero_point"]
    return np.clip(steps, limits.min, limits.max).astype(dtype)


def _to_logical(binding: Any, found: dict[str, Any]) -> Any:
    if binding.get("joined"):
        parts = [_to_logical(part, found) for part in binding["joined"]["parts"]]
        return np.concatenate(parts, axis=binding["joined"]["axis"])
    values = found[binding["artifact"]["name"]].astype(np.float32)
    if binding["scale"] is not None:
        values = (values - binding["zero_point"]) * np.float32(binding["scale"])
    return values.transpose(np.argsort(binding["permute"])) if binding["permute"] else values


def _litert_call(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=2).get_signature_runner()
    return lambda feeds: runner(**feeds)


def _onnx_call(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def source_step(wild: Wild) -> Step:
    """The source model in float; of a PyTorch model, its ONNX form from PyTorch's own exporter."""
    if wild.file == "model.keras":
        return keras_step(wild.folder / wild.file)
    return onnx_step(wild.folder / "model.onnx", wild)


def main() -> None:
    """Write the answers of the source."""
    wild, part, out = MODELS[sys.argv[1]], sys.argv[2], sys.argv[3]
    np.savez(out, **run(source_step(wild), samples(wild, part)))


if __name__ == "__main__":
    main()
