"""Activation ranges of a float .tflite from the model's calibration. Tensors are matched by their values.

Converters rename, fuse and rearrange tensors, so names do not match. A tensor with the same values as a canonical
tensor on the same rows, in any order within a row, gets its histogram. Other tensors are measured here. The values of a
row are compared at up to STATISTICS of their places in sorted order: to keep all of them would take gigabytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converters.calibration.calibrate import histogram_of
from converters.first_runs import open_keeping_tensors
from edgekit.sketches.histogram import Histogram
from edgekit.tensors import Array

CLOSE = 1e-4  # share of the largest value by which float sums in another order may differ
STATISTICS = 1024


class Fingerprint(NamedTuple):
    """The number of a tensor's values in a row, and for each row the smallest, the largest, and some between (R, K)."""

    size: int
    statistics: Array


def fingerprints(rows: Iterable[Mapping[str, Array]]) -> dict[str, Fingerprint]:
    """The fingerprint of each tensor, from its values in each row."""
    sizes: dict[str, int] = {}
    found: dict[str, list[Array]] = {}
    for row in rows:
        for name, value in row.items():
            sizes[name] = value.size
            places = np.linspace(0, value.size - 1, min(value.size, STATISTICS)).astype(np.int64)
            found.setdefault(name, []).append(np.sort(value, axis=None)[places].astype(np.float64))
    return {name: Fingerprint(sizes[name], np.stack(parts)) for name, parts in found.items()}


def tensor_histograms(
    path: Path,
    rows: Sequence[Mapping[str, Array]],
    wanted: Collection[str],
    *,
    probes: Mapping[str, Fingerprint],
    known: Mapping[str, Histogram],
) -> dict[str, Histogram]:
    """The histogram of each of the file's tensors in `wanted`, by name.

    Args:
        path: A float .tflite with one signature.
        rows: Calibration rows as the file takes them, batch 1.
        wanted: Names of tensors.
        probes: The fingerprint of each canonical tensor on the first R rows.
        known: Histograms of the calibration, by canonical name.

    Raises:
        CalibrationError: a tensor has undefined values.
    """
    count = len(next(iter(probes.values())).statistics)
    histograms = {}
    for name, one in fingerprints(islice(_values(path, rows, wanted), count)).items():
        match = _matching_name(one, probes)
        if match in known:
            histograms[name] = known[match]
    return {**histograms, **_measured(path, rows, [name for name in wanted if name not in histograms])}


def _matching_name(one: Fingerprint, probes: Mapping[str, Fingerprint]) -> str:
    """The last name in `probes` whose fingerprint is close to `one`; empty where there is none."""
    limit = CLOSE * max(float(np.abs(one.statistics).max(initial=0.0)), 1e-12)
    for name, other in reversed(list(probes.items())):
        if other.size == one.size and float(np.abs(other.statistics - one.statistics).max(initial=0.0)) <= limit:
            return name
    return ""


def _measured(path: Path, rows: Sequence[Mapping[str, Array]], names: Sequence[str]) -> dict[str, Histogram]:
    histograms: dict[str, Histogram] = {}
    if not names:
        return histograms
    for values in _values(path, rows, names):
        for name, value in values.items():
            now = histogram_of(name, value)
            histograms[name] = histograms[name].merged(now) if name in histograms else now
    return histograms


def _values(path: Path, rows: Sequence[Mapping[str, Array]], names: Collection[str]) -> Iterator[dict[str, Array]]:
    """The values of each tensor, row by row."""
    interpreter = open_keeping_tensors(path)
    indices = {
        detail["name"]: detail["index"] for detail in interpreter.get_tensor_details() if detail["name"] in names
    }
    runner: Any = interpreter.get_signature_runner()
    for row in rows:
        runner(**row)
        yield {name: interpreter.get_tensor(index) for name, index in indices.items()}
