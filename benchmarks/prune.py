"""Channels removed by edgekit and by its peers, in one run: quality at shares of the parameters, and bytes at a budget.

The keyword spotting model of MLPerf Tiny is read from ``shared/data`` beside the project, and skipped if the folder is
missing. The other networks are trained first (`prune_networks`, and `prune_peer_torch` in torch-pruning's environment).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import peers, prune_networks
from benchmarks.convert_models import TEST, TRAIN, digits
from benchmarks.results import Figure, publish
from benchmarks.wild_memory import measured
from edgekit.bundle.manifest import parse_manifest
from edgekit.runtimes import open_runtime

KEYWORDS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "mlperf_tiny_kws"
SHARES = {"0.93": 0.905, "0.86": 0.90, "0.60": 0.89}  # of the parameters of the keyword model -> accuracy to reach
MOST_BYTES = 19_000  # of the keyword model with --aim size
LEAST_AGREEMENT = 0.97
MAX_DROP = 0.01
MAX_RATIO = 0.75  # of the bytes to those without lossy pruning, in the median of the networks
MAX_TIMES = 3.0  # of the whole command to that with --prune none
LIMIT_SECONDS = 1800.0
TARGET = "raspberry-pi-4"
HERE = Path(__file__).parent
Answers = Any  # (N, ...)
Converted = dict[str, Any]


def main() -> None:
    """Run the benchmark and write ``prune.json``."""
    figures: list[Figure] = []
    for peer in ("onnxsim", "torch-pruning"):
        if reason := peers.make(peer):
            print(f"skipped: {peer}: {reason}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-prune-") as name:
        folder = Path(name)
        if KEYWORDS.is_dir():
            figures += _keywords(folder / "keywords")
        else:
            print(f"skipped: no keyword spotting model in {KEYWORDS}", file=sys.stderr)
        figures += _torch(folder / "torch")
        figures += _networks(folder / "networks")
    publish("prune", figures)


# --- shares of the parameters, without any gradient step


def _keywords(folder: Path) -> list[Figure]:
    data, test = KEYWORDS / "calibration.npz", np.load(KEYWORDS / "test.npz")
    unlabeled = folder / "unlabeled.npz"
    folder.mkdir(parents=True)
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
    return figures + _keyword_bytes(folder, unlabeled, test, whole)


def _keyword_bytes(folder: Path, data: Path, test: Any, whole: Answers) -> list[Figure]:
    budget = ("--max-drop", str(1 - LEAST_AGREEMENT))  # without labels, quality is agreement with the float model
    none, auto = (
        _convert(KEYWORDS / "saved_model", data, folder / prune, "--aim", "size", "--prune", prune, *budget)
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


def _torch(folder: Path) -> list[Figure]:
    """A residual network in PyTorch, pruned by torch-pruning, onnxsim and edgekit to the same shares."""
    images, labels = digits()
    images = images.transpose(0, 3, 1, 2)
    folder.mkdir(parents=True)
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


def _networks(folder: Path) -> list[Figure]:
    """Each network with `--prune none`, with dead channels removed, and with lossy pruning: bytes and time."""
    subprocess.run([sys.executable, "-m", "benchmarks.prune_networks", str(folder)], check=True)
    figures, ratios = [], []
    for name, title in prune_networks.NAMES.items():
        model, data, test = (folder / name / part for part in ("model.keras", "data.npz", "test.npz"))
        made = {
            prune: _convert(model, data, folder / name / prune, "--aim", "size", "--prune", prune, test=test)
            for prune in ("none", "dead", "auto")
        }
        auto, others = made["auto"], {f"--prune {prune}": made[prune]["bytes"] for prune in ("none", "dead")}
        ratios.append(auto["bytes"] / others["--prune dead"])
        note = f"{auto['chosen']}; {title}"
        figures.append(Figure(f"{name}: bytes", auto["bytes"], "B", others["--prune dead"], peers=others, note=note))
        least = auto["float"] - MAX_DROP
        quality = {f"--prune {prune}": made[prune]["quality"] for prune in ("none", "dead")}
        figures.append(Figure(f"{name}: on test.npz", auto["quality"], "", least, False, quality))
        figures.append(_times(name, made["none"], auto))
    median = statistics.median(ratios)
    return [*figures, Figure("bytes of those with dead channels removed, median", median, "x", MAX_RATIO)]


def _times(name: str, none: Converted, auto: Converted) -> Figure:
    note = f"{auto['seconds']:.0f} s, {none['seconds']:.0f} s with --prune none; at most {auto['peak'] / 2**30:.1f} GiB"
    return Figure(
        f"{name}: time of that with --prune none", auto["seconds"] / none["seconds"], "x", MAX_TIMES, note=note
    )


def _convert(model: Path, data: Path, folder: Path, *options: str, test: Path | None = None) -> Converted:
    """Run `edgekit convert` with an empty cache."""
    command = [
        str(Path(sys.executable).parent / "edgekit"), "convert", str(model), "--target", TARGET, "--data", str(data),
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
    return {
        "chosen": report["chosen"], "bytes": chosen["bytes"], "bundle": Path(report["bundle"]),
        "float": tested["float"], "quality": tested["chosen"], "seconds": done.seconds, "peak": done.peak_bytes,
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


if __name__ == "__main__":
    main()
