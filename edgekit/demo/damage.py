"""Making the two bad releases of the demo: damaged weights, properly signed; and a blob changed in the store."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_GOLDEN, ROLE_MODEL, Manifest, file_entry, parse_manifest
from edgekit.errors import EdgekitError, RuntimeLoadError
from edgekit.runtimes import open_runtime

WINDOW_BYTES = 8192
MAX_AGREEMENT = 0.5


def damaged_bundle(source: Path, target: Path, *, version: str) -> None:
    """Copy a bundle as `version` with broken weights, its golden answers unchanged and its digests put right.

    The damage is placed where the artifact still loads but decides wrongly for at least every second golden row, so
    that nothing but a self-test can find it.

    Raises:
        EdgekitError: no such place was found.
    """
    manifest = parse_manifest((source / MANIFEST_NAME).read_bytes())
    model = manifest.file(ROLE_MODEL)
    whole = (source / model.path).read_bytes()
    golden = (source / manifest.file(ROLE_GOLDEN).path).read_bytes()
    target.mkdir(parents=True)
    for entry in manifest.files:
        (target / entry.path).write_bytes((source / entry.path).read_bytes())
    # From the middle outwards: weights fill the middle of both file formats, structure sits at the ends.
    middle = len(whole) // 2
    for distance in range(0, middle, WINDOW_BYTES // 2):
        for start in (middle - distance, middle + distance):
            changed = bytearray(whole)
            window = np.frombuffer(whole[start : start + WINDOW_BYTES], np.uint8)
            changed[start : start + WINDOW_BYTES] = (window ^ 0xFF).tobytes()
            candidate = _with_model(manifest, model.path, bytes(changed), version)
            (target / model.path).write_bytes(changed)
            if _loads_but_fails(candidate, target, golden):
                (target / MANIFEST_NAME).write_bytes(candidate.canonical_bytes())
                return
    raise EdgekitError(f"no damage to {source.name} makes it load and answer wrongly")


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file, as a failing disk or an intruder would."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _with_model(manifest: Manifest, path: str, data: bytes, version: str) -> Manifest:
    files = tuple(file_entry(path, ROLE_MODEL, data) if entry.path == path else entry for entry in manifest.files)
    return msgspec.structs.replace(manifest, version=version, files=files)


def _loads_but_fails(manifest: Manifest, folder: Path, golden: bytes) -> bool:
    try:
        runtime = open_runtime(manifest, folder)
    except RuntimeLoadError:
        return False
    try:
        found = self_test(runtime, manifest, golden)
        return not found.passed and found.agreement <= MAX_AGREEMENT
    except RuntimeLoadError:
        return False
    finally:
        runtime.close()


if __name__ == "__main__":  # a process of its own, because a runtime writes to the stderr of the one it is loaded in
    damaged_bundle(Path(sys.argv[1]), Path(sys.argv[2]), version=sys.argv[3])
