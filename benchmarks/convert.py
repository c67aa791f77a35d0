"""A real model converted by us and by stock tools in one run: bytes, time, and quality on samples that chose nothing.

The model and its samples are the keyword spotting of MLPerf Tiny, in ``shared/data`` beside the project; without them
there is nothing to measure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from benchmarks.results import Figure, publish

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "mlperf_tiny_kws"
MAX_BYTES = 24_000
MAX_DROP = 0.01
MAX_SECONDS = 180.0
FLOAT_CLASS = ("float32", "float16", "int8-weights")  # computed in float
TARGETS = ("raspberry-pi-4", "raspberry-pi-5")
SEARCH = """
import json, sys, time
from converters import convert
model, data, test, output, aim, *targets = sys.argv[1:]
begun = time.perf_counter()
found = convert(
    model, targets=targets, data=data, test=test, aim=aim, accept_unproven=True, name="kws", output=output
)
seconds = time.perf_counter() - begun
rows = [
    {
        "target": r.target, "chosen": r.chosen, "precision": r.taken.recipe.precision, "bytes": r.taken.bytes,
        "quality": r.test.chosen, "float": r.test.float_, "proven": r.proven, "upper": r.taken.drop.upper,
    }
    for r in found
]
print(json.dumps([seconds, rows]))
"""


def main() -> None:
    """Measure and publish ``convert.json``."""
    if not FOLDER.is_dir():
        print("skipped: the keyword spotting model is not there", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-convert-") as name:
        folder = Path(name)
        stock = _stock(folder)
        ours = {aim: _ours(folder, aim) for aim in ("size", "cost")}
    publish("convert", _figures(stock, ours))


def _figures(stock: dict[str, tuple[int, float, float]], ours: dict[str, Any]) -> list[Figure]:
    sizes = {name: float(size) for name, (size, _, _) in stock.items()}
    quality = {name: value for name, (_, value, _) in stock.items()}
    times = {name: seconds for name, (_, _, seconds) in stock.items() if seconds}
    figures = []
    for aim, (seconds, rows) in ours.items():
        for row in rows:
            label = f"--aim {aim}, {row['target']}"
            most = MAX_BYTES if aim == "size" else None
            claim = "proven" if row["proven"] else f"not proven: the drop may be as much as {row['upper']:.3f}"
            least = row["float"] - MAX_DROP
            figures.append(Figure(f"{label}: bytes", row["bytes"], "B", most, peers=sizes, note=row["chosen"]))
            figures.append(Figure(f"{label}: on test.npz", row["quality"], "accuracy", least, False, quality, claim))
        figures.append(Figure(f"--aim {aim}: search, {len(rows)} targets", seconds, "s", MAX_SECONDS, peers=times))
    before, after = ours["cost"][1]  # in the order of TARGETS
    differ = before["precision"] in FLOAT_CLASS and after["precision"] == "int8"
    note = f"{before['target']}: {before['chosen']}, {after['target']}: {after['chosen']}"
    label = "--aim cost: float without the int8 dot product, int8 with it"
    return [*figures, Figure(label, float(differ), "", 1.0, at_most=False, note=note)]


def _ours(folder: Path, aim: str) -> tuple[float, list[Any]]:
    """Seconds and what was chosen for each target, from an empty cache."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / f"cache-{aim}")}
    paths = [str(FOLDER / name) for name in ("saved_model", "calibration.npz", "test.npz")]
    command = [sys.executable, "-c", SEARCH, *paths, str(folder / aim), aim, *TARGETS]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, rows = json.loads(done.stdout.splitlines()[-1])
    return seconds, rows


def _stock(folder: Path) -> dict[str, tuple[int, float, float]]:
    """Bytes, accuracy on the test samples and seconds of what each stock tool makes."""
    command = [sys.executable, "-m", "benchmarks.convert_stock", str(FOLDER / "saved_model")]
    command += [str(FOLDER / "calibration.npz"), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    test = np.load(FOLDER / "test.npz")
    found = {}
    for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
        path = folder / name
        answers = _litert(path, test["x"]) if path.suffix == ".tflite" else _onnx(path, test["x"])
        found[path.stem] = (path.stat().st_size, float(np.mean(answers == test["y"])), seconds)
    reference = FOLDER / "reference_int8.tflite"
    accuracy = float(np.mean(_litert(reference, test["x"]) == test["y"]))
    found["the benchmark's own int8"] = (reference.stat().st_size, accuracy, 0.0)  # trained, not converted
    return found


def _litert(path: Path, rows: Any) -> Any:
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = given["quantization"]
    found = []
    for row in rows:
        value = row[None]
        if given["dtype"] == np.int8:
            value = np.clip(np.rint(value / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], value)
        interpreter.invoke()
        found.append(int(np.argmax(interpreter.get_tensor(made["index"]))))
    return np.array(found)


def _onnx(path: Path, rows: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # as ARM computes it
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.array([int(np.argmax(session.run(None, {name: row[None]})[0])) for row in rows])
