"""Activation ranges of a float .tflite from the model's one calibration: tensors are told by the values they take.

Converters rename, fuse and rearrange, so names say nothing. A tensor that takes the same values as a canonical one on
the same rows, in whatever order, has its range; what the converter made up is measured here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from converters.calibration.calibrate import histogram_of
from converters.calibration.histogram import Histogram
from edgekit.tensors import Array

CLOSE = 1e-4  # of the largest value: float sums in another order


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
        probes: What each canonical tensor takes on the first rows, as many as the arrays' first axis has (R, ...).
        known: The calibration, by canonical name.

    Raises:
        CalibrationError: a tensor takes infinite or undefined values.
    """
    count = len(next(iter(probes.values())))
    seen = list(_values(path, rows[:count], wanted))
    prints = {name: np.sort(np.asarray(value, np.float64), axis=None) for name, value in probes.items()}
    found = {}
    for name in seen[0]:
        values = np.concatenate([row[name].ravel() for row in seen]).astype(np.float64)
        match = _same(np.sort(values), prints)
        if match in known:
            found[name] = known[match]
    return {**found, **_measured(path, rows, [name for name in wanted if name not in found])}


def _same(values: Array, prints: Mapping[str, Array]) -> str:
    """The name in `prints` whose sorted values are `values`; the last of several, empty where there is none."""
    limit = CLOSE * max(float(np.abs(values).max()), 1e-12)
    for name, other in reversed(list(prints.items())):
        if other.shape == values.shape and float(np.abs(other - values).max()) <= limit:
            return name
    return ""


def _measured(path: Path, rows: Sequence[Mapping[str, Array]], names: Sequence[str]) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}
    if not names:
        return found
    for values in _values(path, rows, names):
        for name, value in values.items():
            now = histogram_of(name, value)
            found[name] = found[name].merged(now) if name in found else now
    return found


def _values(path: Path, rows: Sequence[Mapping[str, Array]], names: Collection[str]) -> Iterator[dict[str, Array]]:
    """What each tensor takes, row by row."""
    interpreter = Interpreter(
        model_path=str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    places = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details() if detail["name"] in names}
    runner: Any = interpreter.get_signature_runner()
    for row in rows:
        runner(**row)
        yield {name: interpreter.get_tensor(index) for name, index in places.items()}
