"""Answers of converted bundles to the demo's rows, computed on this machine instead of a device.

    python -m edgekit.demo.answers bundles model

runs each bundle in the folder `bundles` on data.npz and test.npz of the folder `model` and prints JSON. The demo runs
it as a separate process, because a runtime writes to the stderr of the process that loads it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.demo.measure import load_rows
from edgekit.errors import EdgekitError
from edgekit.protocols import Runtime
from edgekit.runtimes import open_runtime
from edgekit.tensors import Array

PARTS = ("data", "test")


class Answers(msgspec.Struct, frozen=True):
    """The answers of one bundle to N rows.

    Attributes:
        labels: Class index of the largest score (N).
        scores: The largest score (N), a probability. A device compares it with its threshold.
    """

    labels: list[int]
    scores: list[float]


def bundle_answers(bundle: Path, parts: dict[str, Array]) -> dict[str, Answers]:
    """The answers of a bundle to each part of the data, computed row by row like on a device.

    Raises:
        EdgekitError: the scores of the bundle are not probabilities, so a threshold cannot apply to them.
        RuntimeLoadError: the bundle cannot be loaded.
    """
    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes())
    if manifest.task.scores != "probabilities":
        raise EdgekitError(f"the scores of {bundle.name} are {manifest.task.scores!r}, expected 'probabilities'")
    runtime = open_runtime(manifest, bundle)
    try:
        return {name: _answers(runtime, manifest, rows) for name, rows in parts.items()}
    finally:
        runtime.close()


def _answers(runtime: Runtime, manifest: Manifest, rows: Array) -> Answers:
    name = manifest.inputs[0].spec.name
    scores = np.concatenate([runtime.run({name: row[None]})[manifest.task.output] for row in rows]).astype(np.float64)
    return Answers(labels=scores.argmax(axis=-1).tolist(), scores=scores.max(axis=-1).tolist())


def main() -> None:
    """Print the answers of each bundle, by the name of its folder."""
    bundles, model = Path(sys.argv[1]), Path(sys.argv[2])
    parts = {name: load_rows(model / f"{name}.npz")[0] for name in PARTS}
    answers = {bundle.name: bundle_answers(bundle, parts) for bundle in sorted(bundles.iterdir())}
    print(msgspec.json.encode(answers).decode())


if __name__ == "__main__":
    main()
