"""Size and time of deltas between retrained int8 models, beside bsdiff4 and zstd.

The models are dense networks, trained further and quantized, and written as LiteRT files.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zstandard

from benchmarks import peers
from benchmarks.results import Figure
from edgekit.deltas.making import apply_delta, make_delta
from tests.simulators.weights import litert_file

HIDDEN = (64, 1024, 2048, 10)  # 2.2 million weights on 8x8 digits
STEPS, MORE_STEPS = 600, 60
PEER = """
import bsdiff4, json, sys, time
old, new = (open(path, "rb").read() for path in sys.argv[1:3])
begun = time.process_time(); patch = bsdiff4.diff(old, new); made = time.process_time() - begun
begun = time.process_time(); assert bsdiff4.patch(old, patch) == new; applied = time.process_time() - begun
print(json.dumps([len(patch), made, applied]))
"""


def figures(folder: Path) -> list[Figure]:
    """Sizes of the deltas in percent of the new file, with CPU seconds in the notes."""
    results = []
    for label, old, new in _models():
        results += _compare(folder, label, old, new)
    return results


def _compare(folder: Path, label: str, old: bytes, new: bytes) -> list[Figure]:
    begun = time.process_time()
    made = make_delta(old, new)
    make_seconds = time.process_time() - begun
    if made is None:
        return [Figure(f"delta, {label}", 100.0, "% of the file", note="not made: it would save too little")]
    delta, payload = made
    begun = time.process_time()
    if apply_delta(delta, payload, old) != new:
        raise SystemExit("applying a delta did not give the new file")
    apply_seconds = time.process_time() - begun
    theirs = {"zstd -19 patch-from": _patch_from(old, new), "zstd -19 alone": _alone(new)}
    bsdiff = _bsdiff4(folder, old, new)
    if bsdiff is not None:
        theirs["bsdiff4"] = bsdiff[0]
    share = 100 / len(new)
    reach = share * min(theirs.values())
    note = f"{len(new) / 1e6:.1f} MB; made in {make_seconds:.1f} CPU s, applied in {apply_seconds:.2f}"
    if bsdiff is not None:
        note += f" (bsdiff4: {bsdiff[1]:.1f} and {bsdiff[2]:.2f})"
    size = len(payload) + len(delta.to_bytes())
    return [
        Figure(
            f"delta, {label}",
            share * size,
            "% of the file",
            reach,
            peers={name: share * bytes_ for name, bytes_ in theirs.items()},
            note=note,
        )
    ]


def _patch_from(old: bytes, new: bytes) -> int:
    """Bytes of `zstd -19 --patch-from`, with a window over both files."""
    log = max(10, min(27, (len(old) + len(new)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=log, enable_ldm=True)
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(new))


def _alone(new: bytes) -> int:
    """Bytes of `zstd -19` without the old file."""
    return len(zstandard.ZstdCompressor(level=19).compress(new))


def _bsdiff4(folder: Path, old: bytes, new: bytes) -> tuple[int, float, float] | None:
    """Bytes, CPU seconds to make and CPU seconds to apply; None if bsdiff4 cannot be installed."""
    reason = peers.make("bsdiff4")
    python = peers.python_of("bsdiff4")
    if reason or python is None:
        print(f"skipped bsdiff4: {reason}", file=sys.stderr)
        return None
    for name, data in (("old", old), ("new", new)):
        (folder / name).write_bytes(data)
    command = [str(python), "-c", PEER, str(folder / "old"), str(folder / "new")]
    size, made, applied = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return size, made, applied


# --- the models


def _models() -> list[tuple[str, bytes, bytes]]:
    """Pairs of files: a network after its first training, and the same network trained further or with a new head."""
    rng = np.random.default_rng(1)
    weights = [rng.normal(0, (2 / a) ** 0.5, (a, b)).astype(np.float32) for a, b in itertools.pairwise(HIDDEN)]
    data, labels = _digits()
    _train(weights, data, labels, STEPS, 0.02, rng)
    first = [layer.copy() for layer in weights]
    _train(weights, data, labels, MORE_STEPS, 0.005, rng)
    tuned = [layer.copy() for layer in weights]
    head = [*first[:-1], first[-1] + rng.normal(0, 0.02, first[-1].shape).astype(np.float32)]
    scales = [np.abs(layer).max(axis=0) / 127 for layer in first]
    old = _file(first, scales)
    own = [np.abs(layer).max(axis=0) / 127 for layer in tuned]
    return [
        ("trained on, scales of its own", old, _file(tuned, own)),
        ("trained on, scales kept", old, _file(tuned, scales)),
        ("another header, last layer anew", old, _file(head, scales, "weights of another converter release")),
        *_synthetic(),
    ]


def _synthetic() -> list[tuple[str, bytes, bytes]]:
    """20 MB of int8 weights, of which one in twenty differs by up to three steps."""
    rng = np.random.default_rng(2)
    layers = {f"w{at}": np.clip(rng.normal(0, 30, (1000, 1000)).round(), -127, 127).astype(np.int8) for at in range(20)}
    steps = np.array([-3, -2, -1, 1, 2, 3], np.int8)
    moved = {
        name: np.where(rng.random(layer.shape) < 0.05, layer + rng.choice(steps, layer.shape), layer).astype(np.int8)
        for name, layer in layers.items()
    }
    return [("one weight in twenty moved", litert_file(layers), litert_file(moved))]


def _file(layers: list[np.ndarray], scales: list[np.ndarray], description: str = "weights") -> bytes:
    """A LiteRT file of the quantized layers."""
    quantized = {
        f"dense_{at}/kernel": np.clip((layer / scale).round(), -127, 127).astype(np.int8).T.copy()
        for at, (layer, scale) in enumerate(zip(layers, scales, strict=True))
    }
    return litert_file(quantized, description)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target


def _train(
    weights: list[np.ndarray], data: np.ndarray, labels: np.ndarray, steps: int, rate: float, rng: np.random.Generator
) -> None:
    """Train a ReLU network in place: stochastic gradient descent on the cross entropy."""
    for _ in range(steps):
        chosen = rng.integers(0, len(data), 64)
        values = [data[chosen]]
        for layer in weights[:-1]:
            values.append(np.maximum(values[-1] @ layer, 0))
        scores = values[-1] @ weights[-1]
        scores -= scores.max(axis=1, keepdims=True)
        gradient = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        gradient[np.arange(len(chosen)), labels[chosen]] -= 1
        gradient /= len(chosen)
        for at in reversed(range(len(weights))):
            step = values[at].T @ gradient
            gradient = (gradient @ weights[at].T) * (values[at] > 0)
            weights[at] -= rate * step
