"""A small bundle with a reference, and the rows that the reference is of."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, file_entry
from edgekit.drift.reference import REFERENCE_NAME, ROLE_REFERENCE, bounded, summarise
from edgekit.drift.statistics import answer_statistics, input_statistics
from tests.simulators.small_models import CLASSIFICATION, onnx_bundle, softmax

ROWS = np.random.default_rng(1).normal(0.0, 2.0, (400, 3)).astype(np.float32)


def bundle_with_reference(
    folder: Path, version: str = "1.0.0", *, name: str = "digits", batch: int | None = 1, bounds: bool = False
) -> Manifest:
    """A bundle whose reference is of ROWS; with `bounds`, those of inputs are the extremes of ROWS."""
    manifest = onnx_bundle(folder, name=name, version=version, batch=batch)
    rng, values = np.random.default_rng(2), dict[str, list[float]]()
    for row in ROWS:
        found = answer_statistics(CLASSIFICATION, {"scores": softmax(row[None])}) | input_statistics(
            "x", row, rng.random
        )
        for key, value in found.items():
            values.setdefault(key, []).append(value)
    ties = rng.integers(65_536, size=len(ROWS)).tolist()
    statistics = [summarise(key, found, ties) for key, found in values.items()]
    if bounds:
        statistics = [
            msgspec.structs.replace(one, bounds=(min(values[one.name]), max(values[one.name])))
            if one.name.startswith("input.")
            else one
            for one in statistics
        ]
    data = bounded(statistics).canonical_bytes()
    (folder / REFERENCE_NAME).write_bytes(data)
    entry = file_entry(REFERENCE_NAME, ROLE_REFERENCE, data)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, entry))
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return manifest
