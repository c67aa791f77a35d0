"""Activation ranges of a float .tflite from the model's calibration. Tensors are matched by their values.

Converters rename, fuse and rearrange tensors, so names do not match. A tensor with the same values as a canonical
tensor on the same rows, in any order, gets its histogram. Other tensors are measured here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.calibration.calibrate import histogram_of
from converters.first_runs import open_keeping_tensors
from edgekit.sketches.histogram import Histogram
from edgekit.tensors import Array

CLOSE = 1e-4  # share of the largest value by which float sums in another order may differ


def tensor_histograms(
    path: Path,
    rows: Sequence[Mapping[str, Array]],
    wanted: Collection[str],
    *,
    probes: Mapping[str, Array],
    known: Mapping[str, Histogram],
) -> dict[str, Histogram]:
    """The histogram of each of the file's tensors in `wanted`, by name.

    Args:
        path: A float .tflite with one signature.
        rows: Calibration rows as the file takes them, batch 1.
        wanted: Names of tensors.
        probes: Values (R, ...) of each canonical tensor on the first R rows.
        known: Histograms of the calibration, by canonical name.

    Raises:
        CalibrationError: a tensor has infinite or undefined values.
    """
    count = len(next(iter(probes.values())))
    probed = list(_values(path, rows[:count], wanted))
    sorted_probes = {name: np.sort(np.asarray(value, np.float64), axis=None) for name, value in probes.items()}
    histograms = {}
    for name in probed[0]:
        values = np.concatenate([row[name].ravel() for row in probed]).astype(np.float64)
        match = _matching_name(np.sort(values), sorted_probes)
        if match in known:
            histograms[name] = known[match]
    return {**histograms, **_measured(path, rows, [name for name in wanted if name not in histograms])}


def _matching_name(values: Array, probes: Mapping[str, Array]) -> str:
    """The last name in `probes` whose sorted values are close to `values`; empty where there is none."""
    limit = CLOSE * max(float(np.abs(values).max()), 1e-12)
    for name, other in reversed(list(probes.items())):
        if other.shape == values.shape and float(np.abs(other - values).max()) <= limit:
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
