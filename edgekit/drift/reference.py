"""The reference of a bundle: where each statistic of the calibration data lies. Pure.

It is the file ``reference.json`` of a bundle, in canonical JSON. For each statistic it has eight of the sorted values
of n samples (at LEVELS), for those of inputs also two outer ones, and no sample as a whole. Equal values are ordered by
a random number, the tie, which each sample draws; a statistic then has no equal values, and its ranks follow the same
law whatever its distribution is.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import bisect
import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from edgekit.bounds import not_finite
from edgekit.bundle.manifest import FileEntry, Manifest
from edgekit.errors import ManifestError
from edgekit.tensors import Array

REFERENCE_NAME, ROLE_REFERENCE = "reference.json", "reference"
REFERENCE_FORMAT = 1
MAX_REFERENCE_BYTES = 8 * 1024
MAX_STATISTICS = 32
MIN_SAMPLES = 100  # with fewer, the outermost shares could not be told apart
MAX_SAMPLES = 1_000_000
MAX_NAME = 120
LEVELS = (0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99)
TIES = 65_536


class Statistic(msgspec.Struct, frozen=True):
    """The reference of one statistic.

    Attributes:
        name: As `edgekit.drift.statistics` names it.
        samples: Number of samples n.
        ranks: The ranks of the edges among the n sorted values, 1 to n, rising.
        edges: The value and the tie at each rank.
        bounds: The values between which almost all samples lie (`edgekit.drift.outliers`); UNSET for none.
    """

    name: str
    samples: int
    ranks: tuple[int, ...]
    edges: tuple[tuple[float, int], ...]
    bounds: tuple[float, float] | msgspec.UnsetType = msgspec.UNSET

    def bucket(self, value: float, tie: int) -> int:
        """The bucket of a value: the number of edges that are not above it."""
        return bisect.bisect_right(self.edges, (value, tie))

    @property
    def weights(self) -> tuple[int, ...]:
        """The weight of each bucket: its number of ranks. Together n + 1."""
        bounds = (0, *self.ranks, self.samples + 1)
        return tuple(high - low for low, high in itertools.pairwise(bounds))


class Reference(msgspec.Struct, frozen=True):
    """The reference of a bundle."""

    statistics: tuple[Statistic, ...]
    format: int = REFERENCE_FORMAT

    def canonical_bytes(self) -> bytes:
        """Sorted keys, no spaces, UTF-8."""
        return msgspec.json.encode(self, order="sorted")


def summarise(name: str, values: Sequence[float], ties: Sequence[int]) -> Statistic:
    """The reference of a statistic.

    Args:
        name: Its name.
        values: One for each sample, at least MIN_SAMPLES.
        ties: As many random numbers, 0 to below TIES.
    """
    ordered = sorted(zip(values, ties, strict=True))
    ranks = tuple(max(1, round(level * (len(ordered) + 1))) for level in LEVELS)
    return Statistic(name, len(ordered), ranks, tuple(ordered[rank - 1] for rank in ranks))


def bounded(statistics: Sequence[Statistic]) -> Reference:
    """A reference of the first of `statistics`, as many as fit into the limits of number and bytes."""
    kept = [one for one in statistics if len(one.name) <= MAX_NAME][:MAX_STATISTICS]
    while len(Reference(tuple(kept)).canonical_bytes()) > MAX_REFERENCE_BYTES:
        kept.pop()
    return Reference(tuple(kept))


# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_DECODER = msgspec.json.Decoder(Reference)


def parse_reference(data: bytes) -> Reference:
    """Parse and check a reference.

    Raises:
        ManifestError: it is too large or not JSON, or a field is missing or out of range. The message names all faults.
    """
    if len(data) > MAX_REFERENCE_BYTES:
        raise ManifestError(f"the reference is {len(data)} bytes, the limit is {MAX_REFERENCE_BYTES}")
    try:
        found = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"the reference cannot be parsed: {error}") from error
    faults = [f"{name} is not a finite number" for name in not_finite(found)]
    if found.format != REFERENCE_FORMAT:
        faults.append(f"format is {found.format}, this edgekit reads {REFERENCE_FORMAT}")
    if not 1 <= len(found.statistics) <= MAX_STATISTICS:
        faults.append(f"it has {len(found.statistics)} statistics, expected 1 to {MAX_STATISTICS}")
    if len({one.name for one in found.statistics}) != len(found.statistics):
        faults.append("a statistic is named twice")
    faults += [f"{one.name[:MAX_NAME]!r}: {fault}" for one in found.statistics if (fault := _fault(one))]
    if faults:
        raise ManifestError("the reference is not valid: " + "; ".join(faults))
    return found


def _fault(one: Statistic) -> str:
    if not 1 <= len(one.name) <= MAX_NAME or not one.name.isprintable():
        return f"its name has {len(one.name)} characters, expected 1 to {MAX_NAME} that can be printed"
    if not MIN_SAMPLES <= one.samples <= MAX_SAMPLES:
        return f"it is of {one.samples} samples, expected {MIN_SAMPLES} to {MAX_SAMPLES}"
    if len(one.ranks) != len(LEVELS) or len(one.edges) != len(LEVELS):
        return f"it has {len(one.ranks)} ranks and {len(one.edges)} edges, expected {len(LEVELS)} each"
    if min(one.weights) < 1:
        return f"its ranks {list(one.ranks)} do not rise from 1 to {one.samples}"
    if list(one.edges) != sorted(one.edges) or not all(0 <= tie < TIES for _, tie in one.edges):
        return "its edges do not rise, or a tie is out of range"
    if not isinstance(one.bounds, msgspec.UnsetType) and one.bounds[0] > one.bounds[1]:
        return f"its bounds {list(one.bounds)} do not rise"
    return ""


def reference_entry(manifest: Manifest) -> FileEntry | None:
    """The reference's file in a bundle; None where it has none."""
    return next((entry for entry in manifest.files if entry.role == ROLE_REFERENCE), None)


def weights_of(statistics: Sequence[Statistic]) -> Array:
    """The weights of all buckets, (statistics, buckets) float64."""
    return np.array([one.weights for one in statistics], dtype=np.float64).reshape(len(statistics), len(LEVELS) + 1)
