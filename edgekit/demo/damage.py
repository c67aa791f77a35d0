"""Changed copies of a bundle, properly signed later: broken weights, or slightly changed ones. And damaged files.

    python -m edgekit.demo.damage break bundles/digits-1.0.0-jetson-orin bundles/digits-1.1.0-jetson-orin 1.1.0
    python -m edgekit.demo.damage nudge bundles/digits-1.2.0-raspberry-pi-4 bundles/digits-1.3.0-raspberry-pi-4 1.3.0

copies a bundle as the version that is named last. It is a process of its own, because a runtime writes to the stderr of
the process that loads it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle.golden import SelfTest, self_test
from edgekit.bundle.manifest import BLOCK_BYTES, MANIFEST_NAME, ROLE_GOLDEN, ROLE_MODEL, file_entry, parse_manifest
from edgekit.deltas.tensor_ranges import TensorRange, find_tensors
from edgekit.errors import EdgekitError, RuntimeLoadError
from edgekit.runtimes import open_runtime

MAX_AGREEMENT = 0.5
NUDGE_EVERY = 1000  # weights: a delta holds one changed byte for each, and every block of the file changes
MIN_NUDGED_BYTES = 4096  # smaller tensors may be shapes


def damaged_bundle(source: Path, target: Path, *, version: str) -> None:
    """Copy a bundle as `version` with broken weights, its golden answers unchanged and its digests put right.

    The bits of whole weight tensors are inverted, the largest tensor first, and then set to zero, until the artifact
    still loads but decides at least every second golden row wrongly: only a self-test can find that. With all weights
    at zero every row gets the same answer, so the damage is found whatever the precision of the artifact.

    Raises:
        EdgekitError: the artifact has no weights, or all its golden rows have the same answer.
    """
    copy = _Copy(source, target, version)
    tensors = sorted(find_tensors(copy.model), key=lambda tensor: -tensor.length)
    model = copy.model
    for changed in _damages(model, tensors):
        candidate = changed(model)
        found = copy.try_model(candidate)
        if found is None:
            continue  # it does not load: this tensor stays as it was
        model = candidate
        if not found.passed and found.agreement <= MAX_AGREEMENT:
            copy.keep()
            return
    raise EdgekitError(f"no damage to {source.name} makes it load and answer wrongly")


def nudged_bundle(source: Path, target: Path, *, version: str) -> None:
    """Copy a bundle with float32 weights as `version`, with the last bit of one weight in NUDGE_EVERY changed.

    It stands for a light retraining. Its answers stay within the golden tolerances, and a delta to it is small whatever
    the weights are. Which weights change depends on the version alone.

    Raises:
        EdgekitError: the copy does not pass its self-test.
    """
    copy = _Copy(source, target, version)
    rng = np.random.default_rng(list(version.encode()))
    model = bytearray(copy.model)
    for tensor in find_tensors(copy.model):
        weights = tensor.length // 4
        if tensor.length >= MIN_NUDGED_BYTES:
            for index in rng.choice(weights, size=-(-weights // NUDGE_EVERY), replace=False):
                model[tensor.offset + 4 * int(index)] ^= 1
    found = copy.try_model(bytes(model))
    if found is None or not found.passed or model == copy.model:
        raise EdgekitError(f"{source.name} cannot be nudged: {found.faults if found else 'it does not load'}")
    copy.keep()


def flip_blocks(path: Path) -> None:
    """Change one byte in the middle of each block of a file, as a failing disk or an intruder would."""
    data = bytearray(path.read_bytes())
    for start in range(0, len(data), BLOCK_BYTES):
        data[(start + min(start + BLOCK_BYTES, len(data))) // 2] ^= 0xFF
    path.write_bytes(data)


class _Copy:
    """A copy of a bundle whose model file is replaced.

    Args:
        source, target: Folders; `target` is made.
        version: Of the copy.
    """

    def __init__(self, source: Path, target: Path, version: str) -> None:
        manifest = parse_manifest((source / MANIFEST_NAME).read_bytes())
        self._manifest = msgspec.structs.replace(manifest, version=version)
        self._target = target
        self.model = (source / manifest.file(ROLE_MODEL).path).read_bytes()
        self._golden = (source / manifest.file(ROLE_GOLDEN).path).read_bytes()
        target.mkdir(parents=True)
        for entry in manifest.files:
            (target / entry.path).write_bytes((source / entry.path).read_bytes())

    def try_model(self, model: bytes) -> SelfTest | None:
        """Write a model file and run its self-test; None where it does not load or run."""
        entry = self._manifest.file(ROLE_MODEL)
        changed = file_entry(entry.path, ROLE_MODEL, model)
        files = tuple(changed if one.path == entry.path else one for one in self._manifest.files)
        self._manifest = msgspec.structs.replace(self._manifest, files=files)
        (self._target / entry.path).write_bytes(model)
        try:
            runtime = open_runtime(self._manifest, self._target)
        except RuntimeLoadError:
            return None
        try:
            return self_test(runtime, self._manifest, self._golden)
        except RuntimeLoadError:
            return None
        finally:
            runtime.close()

    def keep(self) -> None:
        """Write the manifest of the model that was tried last."""
        (self._target / MANIFEST_NAME).write_bytes(self._manifest.canonical_bytes())


def _damages(model: bytes, tensors: list[TensorRange]) -> Iterator[Callable[[bytes], bytes]]:
    """Each change of a model file that is tried, one after the other and on top of those before it."""

    def replaced(tensor: TensorRange, values: bytes) -> Callable[[bytes], bytes]:
        return lambda data: data[: tensor.offset] + values + data[tensor.offset + tensor.length :]

    for tensor in tensors:
        bits = np.frombuffer(model, np.uint8, count=tensor.length, offset=tensor.offset)
        yield replaced(tensor, (bits ^ 0xFF).tobytes())
    for tensor in tensors:
        yield replaced(tensor, bytes(tensor.length))


def main() -> None:
    """Make the copy that the command line names."""
    kind, source, target, version = sys.argv[1:]
    make = {"break": damaged_bundle, "nudge": nudged_bundle}[kind]
    make(Path(source), Path(target), version=version)


if __name__ == "__main__":
    main()
