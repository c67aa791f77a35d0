"""Models converted by edgekit and by stock tools in one run: bytes, seconds, and quality on separate test samples.

The keyword spotting model of MLPerf Tiny is read from ``shared/data`` beside the project, and skipped if the folder is
missing. The other models are trained first (`convert_models`); each has a property that makes conversion difficult.
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
FLOAT_CLASS = ("float32", "float16", "int8-weights")  # precisions whose arithmetic is float
FLOAT_FILE = "TFLiteConverter float32"
TARGETS = ("raspberry-pi-4", "raspberry-pi-5")
SEARCH = """
import json, sys, time
from pathlib import Path
from converters import convert
from converters.cache import Cache
model, data, test, output, aims, *targets = sys.argv[1:]
cache, results = Cache(Path(output) / "cache"), []
for aim in aims.split(","):
    begun = time.perf_counter()
    reports = convert(
        model, targets=targets, data=data, test=test, aim=aim, accept_unproven=True, name="kws",
        output=Path(output) / aim, cache=cache,
    )
    seconds = time.perf_counter() - begun
    rows = [
        {
            "target": r.target, "chosen": r.chosen, "precision": r.chosen_candidate.recipe.precision,
            "bytes": r.chosen_candidate.bytes, "upper": r.chosen_candidate.drop.upper, "proven": r.proven,
            "quality": r.test.chosen, "float": r.test.float_,
        }
        for r in reports
    ]
    results.append([seconds, rows])
print(json.dumps(results))
"""

Stock = dict[str, tuple[int, float, float]]  # tool -> (bytes, quality on the test samples, seconds)
Judge = Callable[[Any, Any], float]  # (outputs (N, ...), outputs of the float file) -> quality


def main() -> None:
    """Run the benchmark and write ``convert.json``."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-convert-") as name:
        folder = Path(name)
        if FOLDER.is_dir():
            figures += _keywords(folder / "keywords")
        else:
            print(f"skipped: no keyword spotting model in {FOLDER}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "benchmarks.convert_models", str(folder)], check=True)
        for name in convert_models.NAMES:
            figures += _unseen(name, folder / name)
    publish("convert", figures)


def _keywords(folder: Path) -> list[Figure]:
    test = FOLDER / "test.npz"
    judge = accuracy_of(np.load(test)["y"])
    stock = stock_files(FOLDER / "saved_model", FOLDER / "calibration.npz", test, folder, judge)
    reference = FOLDER / "reference_int8.tflite"
    outputs = _litert(reference, np.load(test)["x"])
    stock["the benchmark's own int8"] = (reference.stat().st_size, judge(outputs, None), 0.0)  # trained, not converted
    paths = (FOLDER / "saved_model", FOLDER / "calibration.npz", test)
    # Each aim starts with an empty cache.
    ours = {aim: _ours(paths, folder / f"ours-{aim}", aim, TARGETS)[0] for aim in ("size", "cost")}
    return _figures(stock, ours)


def _unseen(name: str, folder: Path) -> list[Figure]:
    """Figures of a model on which conversion was not tuned: edgekit with both aims (one cache) beside the stock tools.

    The expected size is below the smallest stock file that keeps the budget on the test samples.
    """
    model, data, test = (folder / part for part in ("model.keras", "data.npz", "test.npz"))
    test_data = np.load(test)
    judge = accuracy_of(test_data["y"]) if "y" in test_data else _agreement
    stock = stock_files(model, data, test, folder / "stock", judge)
    least = stock[FLOAT_FILE][1] - MAX_DROP
    smallest = min(size for size, quality, _ in stock.values() if quality >= least)
    sizes = {tool: float(size) for tool, (size, _, _) in stock.items()}
    quality = {tool: value for tool, (_, value, _) in stock.items()}
    times = {tool: seconds for tool, (_, _, seconds) in stock.items()}
    unit = "accuracy" if "y" in test_data else "agreement"
    figures, note = [], convert_models.NAMES[name]
    for aim, (seconds, rows) in zip(
        ("size", "cost"), _ours((model, data, test), folder, "size,cost", TARGETS), strict=True
    ):
        for row in rows:
            label, chosen = f"{name}, --aim {aim}, {row['target']}", row["chosen"]
            most = float(smallest - 1) if aim == "size" else None
            claim = "proven" if row["proven"] else f"not proven: the drop may be as much as {row['upper']:.3f}"
            figures.append(Figure(f"{label}: bytes", row["bytes"], "B", most, peers=sizes, note=f"{chosen}; {note}"))
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
    """Seconds and the chosen candidate of each target, for each aim. The cache is empty before the first aim."""
    command = [sys.executable, "-c", SEARCH, *map(str, paths), str(folder), aims, *targets]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [(seconds, rows) for seconds, rows in json.loads(done.stdout.splitlines()[-1])]


def stock_files(model: Path, data: Path, test: Path, folder: Path, judge: Judge) -> Stock:
    """Convert with each stock tool and measure its file."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.convert_stock", str(model), str(data), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    rows, stock = np.load(test)["x"], {}
    reference = _litert(folder / f"{FLOAT_FILE}.tflite", rows)
    for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
        path = folder / name
        outputs = _litert(path, rows) if path.suffix == ".tflite" else _onnx(path, rows)
        stock[path.stem] = (path.stat().st_size, judge(outputs, reference), seconds)
    return stock


def accuracy_of(labels: Any) -> Judge:
    return lambda outputs, _: float(np.mean(outputs.argmax(axis=-1) == labels))


def _agreement(outputs: Any, reference: Any) -> float:
    metric = find_metric(None, None, decisions=False)
    return metric.value(score(metric, outputs, reference))


def _litert(path: Path, rows: Any) -> Any:
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = source["quantization"]
    outputs = []
    for row in rows:
        value = row[None]
        if source["dtype"] == np.int8:
            value = np.clip(np.rint(value / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], value)
        interpreter.invoke()
        output = interpreter.get_tensor(result["index"])[0]
        if result["dtype"] == np.int8:
            step, middle = result["quantization"]
            output = (output.astype(np.float32) - middle) * step
        outputs.append(output)
    return np.stack(outputs)


def _onnx(path: Path, rows: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # the same int8 arithmetic as on ARM
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: row[None]})[0][0] for row in rows])
