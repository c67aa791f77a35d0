"""Models converted by us and by stock tools in one run: bytes, time, and quality on samples that chose nothing.

One is the keyword spotting of MLPerf Tiny, in ``shared/data`` beside the project, and left out where that is not there.
The others are trained on the spot (`convert_models`), each with something that conversion stumbles over.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from benchmarks import convert_models
from benchmarks.results import Figure, publish
from converters.quality.metrics import find_metric, score

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "mlperf_tiny_kws"
MAX_BYTES = 24_000
MAX_DROP = 0.01
MAX_SECONDS = 180.0
FLOAT_CLASS = ("float32", "float16", "int8-weights")  # computed in float
FLOAT_FILE = "TFLiteConverter float32"
TARGETS = ("raspberry-pi-4", "raspberry-pi-5")
SEARCH = """
import json, sys, time
from pathlib import Path
from converters import convert
from converters.cache import Cache
model, data, test, output, aims, *targets = sys.argv[1:]
cache, found = Cache(Path(output) / "cache"), []
for aim in aims.split(","):
    begun = time.perf_counter()
    reports = convert(
        model, targets=targets, data=data, test=test, aim=aim, accept_unproven=True, name="kws",
        output=Path(output) / aim, cache=cache,
    )
    seconds = time.perf_counter() - begun
    rows = [
        {
            "target": r.target, "chosen": r.chosen, "precision": r.taken.recipe.precision, "bytes": r.taken.bytes,
            "quality": r.test.chosen, "float": r.test.float_, "proven": r.proven, "upper": r.taken.drop.upper,
        }
        for r in reports
    ]
    found.append([seconds, rows])
print(json.dumps(found))
"""

Stock = dict[str, tuple[int, float, float]]  # bytes, quality on the test samples, and seconds, by name
Judge = Callable[[Any, Any], float]  # answers (N, ...) and those of the float file -> quality


def main() -> None:
    """Measure and publish ``convert.json``."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-convert-") as name:
        folder = Path(name)
        if FOLDER.is_dir():
            figures += _keywords(folder / "keywords")
        else:
            print("skipped: the keyword spotting model is not there", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "benchmarks.convert_models", str(folder)], check=True)
        for name in convert_models.NAMES:
            figures += _unseen(name, folder / name)
    publish("convert", figures)


def _keywords(folder: Path) -> list[Figure]:
    test = FOLDER / "test.npz"
    judge = _accuracy(np.load(test)["y"])
    stock = _stock(FOLDER / "saved_model", FOLDER / "calibration.npz", test, folder, judge)
    reference = FOLDER / "reference_int8.tflite"
    answers = _litert(reference, np.load(test)["x"])
    stock["the benchmark's own int8"] = (reference.stat().st_size, judge(answers, None), 0.0)  # trained, not converted
    paths = (FOLDER / "saved_model", FOLDER / "calibration.npz", test)
    ours = {
        aim: _ours(paths, folder / f"ours-{aim}", aim, TARGETS)[0] for aim in ("size", "cost")
    }  # an empty cache each
    return _figures(stock, ours)


def _unseen(name: str, folder: Path) -> list[Figure]:
    """A model that nothing was tuned on: ours with both aims, from one cache, beside the stock files.

    Ours is asked to be smaller than the smallest stock file that keeps the budget on the test samples.
    """
    model, data, test = (folder / part for part in ("model.keras", "data.npz", "test.npz"))
    held = np.load(test)
    judge = _accuracy(held["y"]) if "y" in held else _agreement
    stock = _stock(model, data, test, folder / "stock", judge)
    least = stock[FLOAT_FILE][1] - MAX_DROP
    smallest = min(size for size, quality, _ in stock.values() if quality >= least)
    sizes = {tool: float(size) for tool, (size, _, _) in stock.items()}
    quality = {tool: value for tool, (_, value, _) in stock.items()}
    times = {tool: seconds for tool, (_, _, seconds) in stock.items()}
    unit = "accuracy" if "y" in held else "agreement"
    figures, note = [], convert_models.NAMES[name]
    for aim, (seconds, rows) in zip(
        ("size", "cost"), _ours((model, data, test), folder, "size,cost", TARGETS), strict=True
    ):
        for row in rows:
            label, took = f"{name}, --aim {aim}, {row['target']}", row["chosen"]
            most = float(smallest - 1) if aim == "size" else None
            claim = "proven" if row["proven"] else f"not proven: the drop may be as much as {row['upper']:.3f}"
            figures.append(Figure(f"{label}: bytes", row["bytes"], "B", most, peers=sizes, note=f"{took}; {note}"))
            least = row["float"] - MAX_DROP
            figures.append(Figure(f"{label}: on test.npz", row["quality"], unit, least, False, quality, claim))
        figures.append(Figure(f"{name}, --aim {aim}: search", seconds, "s", MAX_SECONDS, peers=times))
    return figures


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


def _ours(paths: Sequence[Path], folder: Path, aims: str, targets: Sequence[str]) -> list[tuple[float, list[Any]]]:
    """For each aim seconds and what was chosen for each target; the cache is empty before the first."""
    command = [sys.executable, "-c", SEARCH, *map(str, paths), str(folder), aims, *targets]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [(seconds, rows) for seconds, rows in json.loads(done.stdout.splitlines()[-1])]


def _stock(model: Path, data: Path, test: Path, folder: Path, judge: Judge) -> Stock:
    """What each stock tool makes."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.convert_stock", str(model), str(data), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    rows, found = np.load(test)["x"], {}
    reference = _litert(folder / f"{FLOAT_FILE}.tflite", rows)
    for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
        path = folder / name
        answers = _litert(path, rows) if path.suffix == ".tflite" else _onnx(path, rows)
        found[path.stem] = (path.stat().st_size, judge(answers, reference), seconds)
    return found


def _accuracy(labels: Any) -> Judge:
    return lambda answers, _: float(np.mean(answers.argmax(axis=-1) == labels))


def _agreement(answers: Any, reference: Any) -> float:
    metric = find_metric(None, None, decisions=False)
    return metric.value(score(metric, answers, reference))


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
        answer = interpreter.get_tensor(made["index"])[0]
        if made["dtype"] == np.int8:
            step, middle = made["quantization"]
            answer = (answer.astype(np.float32) - middle) * step
        found.append(answer)
    return np.stack(found)


def _onnx(path: Path, rows: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # as ARM computes it
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: row[None]})[0][0] for row in rows])
