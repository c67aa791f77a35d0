"""Makes copies of a bundle with broken or slightly changed weights, to be signed later, and damages files.

    python -m edgekit.demo.damage break bundles/digits-1.0.0-jetson-orin bundles/digits-1.1.0-jetson-orin 1.1.0
    python -m edgekit.demo.damage nudge bundles/digits-1.2.0-raspberry-pi-4 bundles/digits-1.3.0-raspberry-pi-4 1.3.0

copies a bundle under the version in the last argument. The demo runs it as a separate process, because a runtime writes
to the stderr of the process that loads it.
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
NUDGE_EVERY = 1000  # one weight in so many changes: one byte each in a delta, and every block of the file changes
MIN_NUDGED_BYTES = 4096  # smaller tensors can be shapes


def damaged_bundle(source: Path, target: Path, *, version: str) -> None:
    """Copy a bundle under `version` with broken weights, the same golden answers and correct digests.

    The function changes one weight tensor after the other, the largest first: it inverts the bits of each tensor, then
    sets each tensor to zero. It stops once the artifact loads but decides at least every second golden row wrongly.
    Only a self-test finds such damage. If all weights are zero, every row gets the same answer, so this works with each
    precision.

    Raises:
        EdgekitError: the artifact has no weights, or all its golden rows have the same answer.
    """
    copy = _Copy(source, target, version)
    tensors = sorted(find_tensors(copy.model), key=lambda tensor: -tensor.length)
    model = copy.model
    for changed in _damages(model, tensors):
        candidate = changed(model)
        result = copy.try_model(candidate)
        if result is None:
            continue  # the changed model does not load: skip this change
        model = candidate
        if not result.passed and result.agreement <= MAX_AGREEMENT:
            copy.keep()
            return
    raise EdgekitError(f"cannot damage {source.name} so that it loads and answers wrongly")


def nudged_bundle(source: Path, target: Path, *, version: str) -> None:
    """Copy a bundle with float32 weights under `version`, with the last bit of one weight in NUDGE_EVERY changed.

    The copy replaces a slightly retrained model. Its answers stay within the golden tolerances, and the delta to it is
    small, whatever the weights are. The version alone determines which weights change.

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
    result = copy.try_model(bytes(model))
    if result is None or not result.passed or model == copy.model:
        raise EdgekitError(f"{source.name} cannot be nudged: {result.faults if result else 'it does not load'}")
    copy.keep()


def flip_blocks(path: Path) -> None:
    """Change one byte in the middle of each block of a file, like a failing disk or an intruder."""
    data = bytearray(path.read_bytes())
    for start in range(0, len(data), BLOCK_BYTES):
        data[(start + min(start + BLOCK_BYTES, len(data))) // 2] ^= 0xFF
    path.write_bytes(data)


class _Copy:
    """A copy of a bundle whose model file is replaced.

    Args:
        source: Folder of the bundle.
        target: Folder of the copy; created.
        version: Version of the copy.
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
        """Write a model file and run its self-test. Returns None if the model does not load or run."""
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
        """Write the manifest for the model of the last `try_model`."""
        (self._target / MANIFEST_NAME).write_bytes(self._manifest.canonical_bytes())


def _damages(model: bytes, tensors: list[TensorRange]) -> Iterator[Callable[[bytes], bytes]]:
    """The changes of a model file, in order. Each one is applied on top of the changes before it."""

    def replaced(tensor: TensorRange, values: bytes) -> Callable[[bytes], bytes]:
        return lambda data: data[: tensor.offset] + values + data[tensor.offset + tensor.length :]

    for tensor in tensors:
        bits = np.frombuffer(model, np.uint8, count=tensor.length, offset=tensor.offset)
        yield replaced(tensor, (bits ^ 0xFF).tobytes())
    for tensor in tensors:
        yield replaced(tensor, bytes(tensor.length))


def main() -> None:
    """Make the copy that the arguments describe."""
    kind, source, target, version = sys.argv[1:]
    make = {"break": damaged_bundle, "nudge": nudged_bundle}[kind]
    make(Path(source), Path(target), version=version)


if __name__ == "__main__":
    main()
