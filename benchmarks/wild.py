"""Models as people have them: each is converted or clearly refused, proofs are checked, and sizes compared.

`make bench-wild [ARGS="MODEL ... [--target NAME ...] [--again]"]` runs each model for each target and keeps each result
in ``benchmarks/results/wild``, so an interrupted run goes on where it was, on another day too. The figures are those of
all kept results. A conversion begins with an empty cache; that for raspberry-pi-5 begins with that of raspberry-pi-4,
whose candidates are the same files, and its time and memory are not judged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import wild_judge
from benchmarks.results import Figure, publish
from benchmarks.wild_memory import Finished, measured
from benchmarks.wild_models import MODELS, TOOL_MARK, Wild, prepare

RESULTS = Path(__file__).parent / "results" / "wild"
TARGETS = ("raspberry-pi-4", "raspberry-pi-5", "jetson-orin", "coral-edgetpu")
MAX_DROP = 0.01  # the default of --max-drop, and the quality that a stock file must keep
WIDER_DROPS = (0.1, 100.0)  # one after the other, where no candidate keeps MAX_DROP; stock tools have no limit
ITSELF = "ONNX file itself"  # the source among the stock files
LACKS = "does not run on Edge TPU"  # in a refusal
REFUSED = 3  # exit status: no candidate meets the budget
MAX_BYTES, MAX_SECONDS = 3 << 30, 600.0
LIKE = {"raspberry-pi-5": "raspberry-pi-4"}  # target -> the target with the same candidates, whose cache it begins with
LIMIT_SECONDS, STOCK_SECONDS = 2400.0, 5400.0
MAX_RATIO = 0.9  # of our bytes to those of the best stock file with the same quality
FOREIGN = re.compile(
    r"Traceback|\x1b\[|\[ONNXRuntimeError\]|onnxruntime::|^[WEIF]\d{4} |tensorflow/|Created TensorFlow Lite|"
    r"tf\.\w+\.\w+Error|MLIR|loc\(", re.MULTILINE,
)  # fmt: skip
Result = dict[str, Any]


def main(arguments: Sequence[str] = ()) -> None:
    """Run what is not yet known, then write ``wild.json`` from all results."""
    parser = argparse.ArgumentParser(prog="bench-wild")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be given several times")
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        parser.error(f"unknown model: {', '.join(unknown)}; known: {', '.join(MODELS)}")
    for name in options.models or MODELS:
        for target in options.target or TARGETS:
            path = RESULTS / f"{name}--{target}.json"
            if options.again or not path.exists():
                _keep(path, _one(MODELS[name], target))
    publish("wild", _figures([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


def _keep(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1))
    new.replace(path)
    state = result["skipped"] or result["refusal"] or f"{result['bytes']:,} bytes, {result['recipe']}"
    print(f"{result['model']} for {result['target']}: {state}", file=sys.stderr)


def _one(wild: Wild, target: str) -> Result:
    """The result of one model on one target."""
    result: Result = {"model": wild.name, "target": target, "skipped": "", "refusal": "", "foreign": "", "wrong": None}
    try:
        prepare(wild)
        expected = _expected(wild, "test")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        return {**result, "skipped": f"cannot be prepared: {detail.decode(errors='replace')[-300:] or error}"}
    result["stock"] = _stock(wild, expected)
    with tempfile.TemporaryDirectory(prefix="edgekit-wild-") as name:
        folder = Path(name)
        size = ("--aim", "size", "--accept-unproven")
        cache, warm = _cache(wild, target)
        done = _convert(wild, target, folder / "size", "data", *size, cache=cache)
        used = {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds, "peak_bytes": done.peak_bytes}
        figures = {"warm": warm, **used}
        for drop in WIDER_DROPS:
            if done.status == REFUSED:  # nothing within the budget: files are then compared at what it reaches
                done = _convert(wild, target, folder / "size", "data", *size, "--max-drop", str(drop), cache=cache)
        result |= {**figures, **_outcome(done)}
        if not result["refusal"]:
            bundle = _bundle(folder / "size", target)
            answers = _answers(bundle, wild, "test")
            right = _load(expected)
            result["distances"] = wild_judge.distances(answers, right)
            result["changed"] = wild_judge.changed(answers, right)
        if wild.own and not result["refusal"]:
            result["wrong"] = _proven_and_wrong(wild, target, folder / "default", cache)
    return result


def _cache(wild: Wild, target: str) -> tuple[Path, bool]:
    """The cache's folder, and True if it holds what the conversion for a like target has left."""
    first = LIKE.get(target, target)
    path = wild.folder / f"cache-{first}"
    if first != target and path.exists():
        return path, True
    shutil.rmtree(path, ignore_errors=True)
    return path, False


def _convert(wild: Wild, target: str, folder: Path, part: str, *options: str, cache: Path) -> Finished:
    """Run `edgekit convert`."""
    command = [
        str(Path(sys.executable).parent / "edgekit"), "convert", str(wild.folder / wild.file), "--target", target,
        "--data", str(wild.folder / f"{part}.npz"), "--name", wild.name, "-o", str(folder), "--json",
        *wild.options, *options,
    ]  # fmt: skip
    env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return measured(command, limit_seconds=LIMIT_SECONDS, env=env)


def _outcome(done: Finished) -> Result:
    """What a conversion said: the chosen candidate, or why it was refused, and output that is not ours."""
    foreign = FOREIGN.search(done.err) or FOREIGN.search(done.out)
    line = done.err[max(0, foreign.start() - 20) : foreign.start() + 200].strip() if foreign else ""
    if done.status == 0:
        [report] = json.loads(done.out)
        chosen = next(c for c in report["candidates"] if c["id"] == report["chosen"])
        return {"recipe": chosen["id"], "bytes": chosen["bytes"], "proven": report["proven"], "foreign": line}
    said = done.err.rpartition("edgekit: ")[2]
    return {"refusal": f"exit {done.status}: {' '.join(said.split())[:600]}", "foreign": line}


def _bundle(folder: Path, target: str) -> Path:
    return next(path for path in folder.iterdir() if path.name.endswith(f"-{target}"))


def _answers(bundle: Path, wild: Wild, part: str) -> wild_judge.Answers:
    return wild_judge.run(wild_judge.bundle_step(bundle), wild_judge.samples(wild, part))


def _proven_and_wrong(wild: Wild, target: str, folder: Path, cache: Path) -> Result | None:
    """Look for outputs that are called proven and are beyond their limit on as many fresh samples.

    The conversion has default options. The drop of an output of scores is the share of changed decisions, that of any
    other output its distance. An output counts as wrong only where the drop without its noise (two standard errors of
    a share) is beyond the limit.
    """
    done = _convert(wild, target, folder, "many", cache=cache)
    if done.status != 0:
        return None
    [report] = json.loads(done.out)
    expected = _load(_expected(wild, "fresh"))
    answers = _answers(_bundle(folder, target), wild, "fresh")
    changes, far = wild_judge.changed(answers, expected), wild_judge.distances(answers, expected)
    decision = json.loads((_bundle(folder, target) / "manifest.json").read_bytes())["task"]["output"]
    drops = {name: changes[name] if name == decision and name in changes else far[name] for name in expected}
    rows = len(next(iter(expected.values())))
    beyond = {name: drop for name, drop in drops.items() if drop - 2 * (drop / rows) ** 0.5 > MAX_DROP}
    return {"proven": report["proven"], "drops": drops, "beyond": beyond if report["proven"] else {}}


def _expected(wild: Wild, part: str) -> Path:
    """File of the source's answers; made once, in a process of its own."""
    path = wild.folder / f"expected-{part}.npz"
    if not path.exists():
        command = [sys.executable, "-m", "benchmarks.wild_judge", wild.name, part, str(path)]
        subprocess.run(command, check=True, capture_output=True)
    return path


def _load(path: Path) -> wild_judge.Answers:
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def _stock(wild: Wild, expected: Path) -> Result:
    """Files of the stock tools; made once for a model and these scripts."""
    code = b"".join((Path(__file__).parent / f"wild_{part}.py").read_bytes() for part in ("stock", "judge", "models"))
    path = wild.folder / f"stock-{hashlib.sha256(code).hexdigest()[:12]}.json"
    crashed: list[str] = []
    while not path.exists():
        command = [sys.executable, "-m", "benchmarks.wild_stock", wild.name, str(expected), *crashed]
        done = measured(command, limit_seconds=STOCK_SECONDS, env=os.environ)
        tool = done.err.rpartition(TOOL_MARK)[2].partition("\n")[0]
        if done.status == 0:
            path.write_text(done.out)
        elif TOOL_MARK not in done.err or tool in crashed:
            return {"all tools": {"error": done.err.strip()[-400:]}}
        else:
            crashed.append(tool)  # it ended the process, by a fault in native code; the others are tried without it
    found: Result = json.loads(path.read_text())
    return found


# --- figures


def _figures(results: list[Result]) -> list[Figure]:
    """A line for each model and target, then what holds for all."""
    tried = [result for result in results if not result["skipped"]]
    converted = [result for result in tried if not result["refusal"]]
    figures = [figure for result in results for figure in _lines(result)]
    ratios = [ratio for result in converted if (ratio := _ratio(result)) is not None]
    lacking = [result for result in tried if result["target"] == "coral-edgetpu" and LACKS in result["refusal"]]
    lost = [result for result in tried if result["refusal"] and result not in lacking and _stock_converts(result)]
    wrong = [result for result in converted if result["wrong"] and result["wrong"]["beyond"]]
    foreign = [result for result in tried if result["foreign"]]
    count = f"of {len(tried)} tried"
    figures += [
        Figure("converted", len(converted), "runs", note=count),
        Figure("not converted, but a stock tool does", len(lost), "runs", 0, note=_names(lost) or count),
        Figure(
            "refused for operators that the Edge TPU lacks",
            len(lacking),
            "runs",
            note=f"stock files for them run there on the processor; {_names(lacking) or count}",
        ),
        Figure("proven and wrong", len(wrong), "runs", 0, note=_names(wrong) or count),
        Figure("tracebacks or foreign messages", len(foreign), "runs", 0, note=_names(foreign) or count),
    ]
    if ratios:
        note = "--aim size --accept-unproven; stock files that are at least as near to float, or within the budget"
        figures.append(
            Figure("bytes of the best stock file, median", statistics.median(ratios), "x", MAX_RATIO, note=note)
        )
    if cold := [result for result in tried if not result["warm"]]:
        peak, slow = max(r["peak_bytes"] for r in cold), max(min(r["seconds"], r["cpu_seconds"]) for r in cold)
        figures.append(Figure("peak memory, largest", peak, "B", MAX_BYTES, note="PSS of all processes, sampled"))
        figures.append(Figure("time, longest", slow, "s", MAX_SECONDS, note="one model, one target"))
    return figures


def _lines(result: Result) -> list[Figure]:
    name = f"{result['model']}, {result['target']}"
    if result["skipped"]:
        return [Figure(f"{name}: skipped", 1, "", note=result["skipped"])]
    if result["refusal"]:
        return [Figure(f"{name}: refused", 1, "", note=result["refusal"])]
    stock = {tool: float(one["bytes"]) for tool, one in result["stock"].items() if "bytes" in one}
    far = ", ".join(f"{output} {value:.2g}" for output, value in result["distances"].items())
    note = f"{result['recipe']}; distance in each output's spread: {far}"
    best = _best_stock(result)
    size = Figure(f"{name}: bytes", result["bytes"], "B", best and MAX_RATIO * best, peers=stock, note=note)
    if result["warm"]:
        return [size]
    # Beside other work on the machine, the wall time is longer than that of the processor; without it, it is shorter.
    seconds = min(result["seconds"], result["cpu_seconds"])
    used = f"{result['seconds']:.0f} s by the clock, {result['cpu_seconds']:.0f} s of processor"
    return [
        size,
        Figure(f"{name}: time", seconds, "s", MAX_SECONDS, note=used),
        Figure(f"{name}: peak memory", result["peak_bytes"], "B", MAX_BYTES),
    ]


def _stock_converts(result: Result) -> bool:
    """True if a stock tool made a file for the target: for the Edge TPU, a .tflite of static int8."""
    fits = _integer_tools if result["target"] == "coral-edgetpu" else bool
    return any("bytes" in one and fits(tool) for tool, one in result["stock"].items() if tool != ITSELF)


def _best_stock(result: Result) -> int | None:
    """Bytes of the smallest stock file for the target's runtime that is as near to float; None if there is none.

    As near means that its farthest output is no farther than ours, or within the budget.
    """
    limit = max(MAX_DROP, *result["distances"].values())
    fits = {"jetson-orin": _onnx_tools, "coral-edgetpu": _integer_tools}.get(result["target"], _litert_tools)
    sizes = [
        one["bytes"]
        for tool, one in result["stock"].items()
        if "bytes" in one and fits(tool) and max(one["distances"].values()) <= limit
    ]
    return min(sizes, default=None)


def _onnx_tools(tool: str) -> bool:
    return tool.startswith(("onnxruntime", "tf2onnx", ITSELF))


def _litert_tools(tool: str) -> bool:
    return not _onnx_tools(tool)


def _integer_tools(tool: str) -> bool:
    return _litert_tools(tool) and "static" in tool


def _ratio(result: Result) -> float | None:
    best = _best_stock(result)
    return result["bytes"] / best if best else None


def _names(results: list[Result]) -> str:
    return ", ".join(f"{result['model']} for {result['target']}" for result in results)
