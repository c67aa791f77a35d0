"""The answers of converted bundles to the demo's rows, computed here and not on a device.

    python -m edgekit.demo.answers bundles model

runs each bundle in the folder `bundles` on data.npz and test.npz of the folder `model` and prints JSON. It is a process
of its own, because a runtime writes to the stderr of the process that loads it.
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
        labels: Index of the largest score (N).
        scores: The largest score (N), a probability. A device compares it with its threshold.
    """

    labels: list[int]
    scores: list[float]


def bundle_answers(bundle: Path, parts: dict[str, Array]) -> dict[str, Answers]:
    """The answers of a bundle to each part of the data, row by row, as a device computes them.

    Raises:
        EdgekitError: its scores are not probabilities, so that they cannot be compared with a threshold.
        RuntimeLoadError: it cannot be loaded.
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
    found = np.concatenate([runtime.run({name: row[None]})[manifest.task.output] for row in rows]).astype(np.float64)
    return Answers(labels=found.argmax(axis=-1).tolist(), scores=found.max(axis=-1).tolist())


def main() -> None:
    """Print the answers of each bundle by its folder's name."""
    bundles, model = Path(sys.argv[1]), Path(sys.argv[2])
    parts = {name: load_rows(model / f"{name}.npz")[0] for name in PARTS}
    found = {bundle.name: bundle_answers(bundle, parts) for bundle in sorted(bundles.iterdir())}
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
