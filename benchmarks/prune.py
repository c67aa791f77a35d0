"""Channels removed by edgekit and by its peers, in one run: quality at shares of the parameters, and bytes at a budget.

`make bench-prune [ARGS="PART ... [--again]"]` runs each part and keeps its figures in ``benchmarks/results/prune``, so
that an interrupted run goes on where it was. The keyword spotting model of MLPerf Tiny is read from ``shared/data``
beside the project, and skipped if the folder is missing. The other networks are trained first (`prune_networks`,
``examples/digits.py``, and `prune_peer_torch` in torch-pruning's environment). Instructions are counted where
`make arm` was run. Ratios of time are those of processor time, so other work on the machine does not change them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from benchmarks import convert, peers, prune_networks
from benchmarks.convert_models import TEST, TRAIN, digits
from benchmarks.prune_instructions import counts
from benchmarks.results import Figure, publish
from benchmarks.wild_memory import measured
from edgekit.bundle.manifest import parse_manifest
from edgekit.runtimes import open_runtime

KEYWORDS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "mlperf_tiny_kws"
SHARES = {"0.93": 0.905, "0.86": 0.90, "0.60": 0.89}  # of the parameters of the keyword model -> accuracy to reach
MOST_BYTES = 19_000  # of the keyword model with --aim size
LEAST_AGREEMENT = 0.97
KEYWORD_BUDGET = ("--max-drop", str(1 - LEAST_AGREEMENT))  # without labels, quality is agreement with the float model
MAX_DROP = 0.01
DIGITS_DROP = 0.015  # on test.npz, from the float model
DIGITS_BYTES, DIGITS_COST = 0.25, 0.5  # of stock static int8's bytes, and of the best stock file's instructions
KEYWORD_COST = {"raspberry-pi-4": 1.0e6, "raspberry-pi-5": 0.585e6}
STATIC = "static"  # in the names of stock files
MAX_RATIO = 0.75  # of the bytes to those without lossy pruning, in the median of the networks
MAX_TIMES = 3.0  # of the whole command to that with --prune none
LIMIT_SECONDS = 1800.0
TARGET = "raspberry-pi-4"
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "prune"
DIGITS_SCRIPT = HERE.parent / "examples" / "digits.py"
Answers = Any  # (N, ...)
Converted = dict[str, Any]


def main(arguments: Sequence[str] = ()) -> None:
    """Run the parts that have no figures yet, then write ``prune.json`` from all of them."""
    parser = argparse.ArgumentParser(prog="bench-prune")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--again", action="store_true", help="run also what has figures")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"unknown part: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    for name in options.parts or PARTS:
        if options.again or not _kept(name):
            with tempfile.TemporaryDirectory(prefix="edgekit-bench-prune-") as folder:
                figures = PARTS[name](Path(folder))
            if figures:
                RESULTS.mkdir(parents=True, exist_ok=True)
                data = msgspec.json.format(msgspec.json.encode(figures), indent=1)
                (RESULTS / f"{name}.json").write_bytes(data + b"\n")
    figures = [figure for name in PARTS for figure in _kept(name)]
    publish("prune", [*figures, *_median(figures)])


def _kept(part: str) -> list[Figure]:
    path = RESULTS / f"{part}.json"
    return msgspec.json.decode(path.read_bytes(), type=list[Figure]) if path.exists() else []


def _median(figures: list[Figure]) -> list[Figure]:
    ratios = [
        figure.value / figure.peers["--prune dead"]
        for figure in figures
        if figure.unit == "B" and "--prune dead" in figure.peers
    ]
    if not ratios:
        return []
    note = f"of {len(ratios)} networks"
    return [
        Figure(
            "bytes to those with dead channels removed, median", statistics.median(ratios), "x", MAX_RATIO, note=note
        )
    ]


# --- shares of the parameters, without any gradient step


def _keywords(folder: Path) -> list[Figure]:
    if not KEYWORDS.is_dir():
        print(f"skipped: no keyword spotting model in {KEYWORDS}", file=sys.stderr)
        return []
    _make_peer("onnxsim")
    data, test = KEYWORDS / "calibration.npz", np.load(KEYWORDS / "test.npz")
    unlabeled = folder / "unlabeled.npz"
    np.savez(unlabeled, x=np.load(data)["x"])
    ours = folder / "ours"
    left = _shares(KEYWORDS / "saved_model", unlabeled, ours, list(SHARES))
    theirs = _peer("onnxsim", "prune_peer_onnxsim.py", ours / "float.onnx", unlabeled, folder / "onnxsim", *SHARES)
    whole = _answers(ours / "float.onnx", test["x"])
    figures = []
    for share, reach in SHARES.items():
        answers = _answers(ours / f"{share}.onnx", test["x"])
        right, agree = _accuracy(answers, test["y"]), _agreement(answers, whole)
        note = f"{left[share]['left']:.3f} of the parameters, {left[share]['seconds']:.1f} s; agreement {agree:.3f}"
        others = _qualities(theirs, share, test["x"], lambda found: _accuracy(found, test["y"]))
        figures.append(Figure(f"keywords at {share}: accuracy", right, "accuracy", reach, False, others, note))
    figures += _keyword_bytes(folder, unlabeled, test, whole)
    paths = (KEYWORDS / "saved_model", data, KEYWORDS / "test.npz")
    stock = convert.stock_files(*paths, folder / "stock", convert.accuracy_of(test["y"]))
    least = _accuracy(whole, test["y"]) - MAX_DROP
    return figures + _costs(
        "keywords", (paths[0], unlabeled), stock, folder, *KEYWORD_BUDGET, least=least, test=test, reach=KEYWORD_COST
    )


def _keyword_bytes(folder: Path, data: Path, test: Any, whole: Answers) -> list[Figure]:
    none, auto = (
        _convert(KEYWORDS / "saved_model", data, folder / prune, "--aim", "size", "--prune", prune, *KEYWORD_BUDGET)
        for prune in ("none", "auto")
    )
    found = _bundle_answers(auto["bundle"], test["x"])
    agree, right = _agreement(found, whole), _accuracy(found, test["y"])
    close = agree >= LEAST_AGREEMENT or right >= _accuracy(whole, test["y"]) - MAX_DROP
    note = f"{auto['chosen']}; agreement {agree:.3f}, accuracy {right:.3f}"
    return [
        Figure(
            "keywords, --aim size: bytes", auto["bytes"], "B", MOST_BYTES, peers={"--prune none": none["bytes"]},
            note=note,
        ),
        Figure("keywords, --aim size: within the point or agreement 0.97", float(close), "", 1.0, False, note=note),
        _times("keywords", none, auto),
    ]  # fmt: skip


def _make_peer(peer: str) -> None:
    if reason := peers.make(peer):
        print(f"skipped: {peer}: {reason}", file=sys.stderr)


def _torch(folder: Path) -> list[Figure]:
    """A residual network in PyTorch, pruned by torch-pruning, onnxsim and edgekit to the same shares."""
    _make_peer("onnxsim")
    _make_peer("torch-pruning")
    images, labels = digits()
    images = images.transpose(0, 3, 1, 2)
    rows = {"train": slice(0, TRAIN), "data": slice(TRAIN, len(images) - TEST)}
    for name, part in rows.items():
        np.savez(folder / f"{name}.npz", x=images[part], **({"y": labels[part]} if name == "train" else {}))
    theirs = _peer("torch-pruning", "prune_peer_torch.py", folder / "train.npz", folder / "torch-pruning", *SHARES)
    if not theirs:
        return []
    whole = folder / "torch-pruning" / "float.onnx"
    left = _shares(whole, folder / "data.npz", folder / "ours", list(SHARES))
    theirs |= _peer("onnxsim", "prune_peer_onnxsim.py", whole, folder / "data.npz", folder / "onnxsim", *SHARES)
    figures = []
    for share in SHARES:
        right = _accuracy(_answers(folder / "ours" / f"{share}.onnx", images[-TEST:]), labels[-TEST:])
        others = _qualities(theirs, share, images[-TEST:], lambda found: _accuracy(found, labels[-TEST:]))
        others["float"] = _accuracy(_answers(whole, images[-TEST:]), labels[-TEST:])
        note = f"{left[share]['left']:.3f} of the parameters, {left[share]['seconds']:.1f} s; no gradient step"
        figures.append(Figure(f"PyTorch residual at {share}: accuracy", right, "accuracy", None, False, others, note))
    return figures


# --- bytes at a budget


def _digits(folder: Path) -> list[Figure]:
    """The digits network of the examples, with labels: bytes and instructions beside the stock files."""
    command = [sys.executable, str(DIGITS_SCRIPT), "-o", str(folder), "--no-cloud"]
    subprocess.run(command, stdout=sys.stderr, check=True)
    model, data, test = folder / "digits.keras", folder / "data.npz", folder / "test.npz"
    labels = np.load(test)["y"]
    stock = convert.stock_files(model, data, test, folder / "stock", convert.accuracy_of(labels))
    none, auto = (
        _convert(model, data, folder / prune, "--aim", "size", "--prune", prune, test=test)
        for prune in ("none", "auto")
    )
    least = auto["float"] - DIGITS_DROP
    sizes = {tool: float(size) for tool, (size, _, _) in stock.items()} | {"--prune none": none["bytes"]}
    most = DIGITS_BYTES * min(size for tool, (size, quality, _) in stock.items() if STATIC in tool and quality >= least)
    figures = [
        Figure("digits, --aim size: bytes", auto["bytes"], "B", most, peers=sizes, note=auto["chosen"]),
        Figure("digits, --aim size: on test.npz", auto["quality"], "accuracy", least, False),
        _times("digits", none, auto),
    ]
    return figures + _costs("digits", (model, data), stock, folder, least=least, test=np.load(test))


def _costs(
    name: str, paths: tuple[Path, Path], stock: convert.Stock, folder: Path, *options: str, least: float, test: Any,
    reach: dict[str, float] | None = None,
) -> list[Figure]:  # fmt: skip
    """Instructions with `--aim cost` on both cores, beside those of the stock files that keep `least`."""
    figures: list[Figure] = []
    good = [folder / "stock" / tool for tool, (_, quality, _) in stock.items() if quality >= least]
    files = [path for path in (folder / "stock").iterdir() if path.with_suffix("") in good]
    for target in convert.TARGETS:
        made = _convert(*paths, folder / f"cost-{target}", "--aim", "cost", *options, target=target)
        theirs = counts(target, files)
        if not theirs:
            return figures
        [count] = counts(target, [made["artifact"]]).values()
        right = _accuracy(_bundle_answers(made["bundle"], test["x"]), test["y"])
        most = reach[target] if reach else DIGITS_COST * min(theirs.values())
        title = f"{name}, --aim cost, {target}"
        figures += [
            Figure(f"{title}: instructions", count, "", most, peers=theirs, note=made["chosen"]),
            Figure(f"{title}: on test.npz", right, "accuracy", least, False),
        ]
    return figures


def _network(name: str, folder: Path) -> list[Figure]:
    """A network with `--prune none`, with dead channels removed, and with lossy pruning: bytes and time."""
    subprocess.run([sys.executable, "-m", "benchmarks.prune_networks", str(folder), name], check=True)
    model, data, test = (folder / name / part for part in ("model.keras", "data.npz", "test.npz"))
    made = {
        prune: _convert(model, data, folder / name / prune, "--aim", "size", "--prune", prune, test=test)
        for prune in ("none", "dead", "auto")
    }
    auto, others = made["auto"], {f"--prune {prune}": made[prune]["bytes"] for prune in ("none", "dead")}
    note = f"{auto['chosen']}; {prune_networks.NAMES[name]}"
    quality = {f"--prune {prune}": made[prune]["quality"] for prune in ("none", "dead")}
    return [
        Figure(f"{name}: bytes", auto["bytes"], "B", others["--prune dead"], peers=others, note=note),
        Figure(f"{name}: on test.npz", auto["quality"], "", auto["float"] - MAX_DROP, False, quality),
        _times(name, made["none"], auto),
    ]


def _resnet(folder: Path) -> list[Figure]:
    """The graph operations of pruning on ResNet50V2 with random weights, to 60 % of the parameters."""
    script = f"import keras; keras.applications.ResNet50V2(weights=None).save({str(folder / 'model.keras')!r})"
    subprocess.run([sys.executable, "-c", script], stdout=sys.stderr, check=True)
    rows = np.random.default_rng(0).uniform(-1, 1, (16, 224, 224, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=rows)
    command = [
        sys.executable,
        "-m",
        "benchmarks.prune_shares",
        *map(str, (folder / "model.keras", folder / "data.npz")),
    ]
    done = measured([*command, str(folder / "out"), "0.6"], limit_seconds=2 * LIMIT_SECONDS, env=os.environ)
    if done.status != 0:
        raise SystemExit(f"ResNet50V2 cannot be pruned: {done.err[-2000:]}")
    left = json.loads(done.out.splitlines()[-1])["0.6"]["left"]
    note = f"{left:.3f} of the parameters, 16 samples; loading and canonical passes included"
    return [
        Figure("ResNet50V2, pruned: processor time", done.cpu_seconds / 60, "min", note=note),
        Figure("ResNet50V2, pruned: peak memory", done.peak_bytes / 2**30, "GiB"),
    ]


def _times(name: str, none: Converted, auto: Converted) -> Figure:
    note = f"{auto['seconds']:.0f} s, {none['seconds']:.0f} s with --prune none; at most {auto['peak'] / 2**30:.1f} GiB"
    ratio = auto["cpu_seconds"] / none["cpu_seconds"]
    return Figure(f"{name}: processor time to that with --prune none", ratio, "x", MAX_TIMES, note=note)


def _convert(
    model: Path, data: Path, folder: Path, *options: str, test: Path | None = None, target: str = TARGET
) -> Converted:
    """Run `edgekit convert` with an empty cache."""
    command = [
        str(Path(sys.executable).parent / "edgekit"), "convert", str(model), "--target", target, "--data", str(data),
        "--name", "bench", "-o", str(folder / "bundles"), "--accept-unproven", "--json", *options,
        *(("--test", str(test)) if test else ()),
    ]  # fmt: skip
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    done = measured(command, limit_seconds=LIMIT_SECONDS, env=env)
    if done.status != 0:
        raise SystemExit(f"{' '.join(command)} failed: {done.err[-2000:]}")
    [report] = json.loads(done.out)
    chosen = next(one for one in report["candidates"] if one["id"] == report["chosen"])
    tested = report["test"] or {"float": 0.0, "chosen": 0.0}
    bundle = Path(report["bundle"])
    return {
        "chosen": report["chosen"], "bytes": chosen["bytes"], "bundle": bundle,
        "artifact": next(path for path in bundle.iterdir() if path.suffix in (".tflite", ".onnx")),
        "float": tested["float"], "quality": tested["chosen"], "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds, "peak": done.peak_bytes,
    }  # fmt: skip


# --- tools and answers


def _shares(model: Path, data: Path, folder: Path, shares: Sequence[str]) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.prune_shares", str(model), str(data), str(folder), *shares]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    made: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return made


def _peer(peer: str, script: str, *arguments: Any) -> dict[str, Path]:
    """Run a peer's script; its folder of results by its name, empty where the peer cannot be had."""
    python = peers.python_of(peer)
    if python is None:
        return {}
    command = [str(python), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    if done.returncode != 0:
        print(f"skipped: {peer}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    return {peer: next(Path(one) for one in arguments[::-1] if isinstance(one, Path))}


def _qualities(theirs: dict[str, Path], share: str, x: Any, judge: Callable[[Answers], float]) -> dict[str, float]:
    paths = {peer: folder / f"{share}.onnx" for peer, folder in theirs.items()}
    return {peer: judge(_answers(path, x)) for peer, path in paths.items() if path.exists()}


def _answers(path: Path, x: Any) -> Answers:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[at : at + 50]})[0] for at in range(0, len(x), 50)])


def _bundle_answers(bundle: Path, x: Any) -> Answers:
    runtime = open_runtime(parse_manifest((bundle / "manifest.json").read_bytes()), bundle)
    try:
        [spec] = runtime.inputs
        return next(iter(runtime.run({spec.name: x}).values()))
    finally:
        runtime.close()


def _accuracy(answers: Answers, labels: Any) -> float:
    return float(np.mean(answers.argmax(axis=-1) == labels))


def _agreement(answers: Answers, whole: Answers) -> float:
    return float(np.mean(answers.argmax(axis=-1) == whole.argmax(axis=-1)))


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "keywords": _keywords,
    "digits": _digits,
    "torch": _torch,
    **{name: functools.partial(_network, name) for name in prune_networks.NAMES},
    "resnet": _resnet,
}

if __name__ == "__main__":
    main(sys.argv[1:])
