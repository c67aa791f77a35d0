"""The samples of a recheck: the bundle's golden samples, and the proof rows of the conversion's data."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from converters.compare import bundle_interface
from converters.data.repeats import without_copies
from converters.data.samples import Samples, load_samples, split_samples
from converters.data.stateful import data_inputs
from converters.graph.interface import sample_spec
from converters.recheck.differences import Budget
from converters.recheck.messages import GOLDEN, PROOF
from converters.recheck.running import RowSet
from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import ROLE_GOLDEN, ROLE_REPORT, Manifest
from edgekit.errors import DataError, ManifestError


class Split(msgspec.Struct, frozen=True):
    """The rows of the conversion's data, from report.json."""

    digest: str
    calibration: int
    choice: int
    proof: int


class Facts(msgspec.Struct, frozen=True):
    """The facts of the proof in a bundle's report.json; defaults where there is none."""

    split: Split | None = None
    budget: Budget = Budget()


class Looked(msgspec.Struct, frozen=True):
    """The samples that were compared, of how many, and a sentence on them."""

    rows: str
    n: int
    of: int
    note: str = ""


def report_facts(manifest: Manifest, folder: Path) -> Facts:
    """The proof's facts of the bundle's report; defaults where it has none or it cannot be read."""
    for entry in manifest.files:
        if entry.role == ROLE_REPORT and entry.path.endswith(".json"):
            try:
                return msgspec.json.decode((folder / entry.path).read_bytes(), type=Facts)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
                return Facts()
    return Facts()


def golden_rows(manifest: Manifest, folder: Path) -> tuple[RowSet, bytes]:
    """The golden samples, and the bytes of their file.

    Raises:
        ManifestError: they cannot be read.
    """
    try:
        data = (folder / manifest.file(ROLE_GOLDEN).path).read_bytes()
    except OSError as error:
        raise ManifestError(f"the golden samples of {folder} cannot be read: {error}") from error
    return RowSet(GOLDEN, read_golden(data)[0]), data


def proof_rows(manifest: Manifest, data: Path, split: Split | None, most: int) -> tuple[RowSet, Looked]:
    """The proof rows of the conversion's data; all rows of other data, which the conversion has not seen.

    Args:
        manifest: The bundle.
        data: The data file.
        split: The split of the conversion; None where it is not known.
        most: Largest number of rows; the first ones, whole streams.

    Raises:
        DataError: the data does not fit the model.
    """
    interface = bundle_interface(manifest)
    samples = load_samples(
        data, [sample_spec(one.spec) for one in interface.inputs if one.in_graph], interface=interface
    )
    taken, note = _proof(samples, split)
    inputs, count = data_inputs(taken), len(taken)
    streams: tuple[int, ...] = ()
    if taken.stream is not None:
        order = np.argsort(taken.stream, kind="stable")
        inputs = {name: value[order] for name, value in inputs.items()}
        streams, count = _whole_streams(np.bincount(taken.stream), most)
    else:
        count = min(count, most)
    rows = RowSet(PROOF, {name: value[:count] for name, value in inputs.items()}, streams)
    return rows, Looked(PROOF, count, len(taken), note)


def _proof(samples: Samples, split: Split | None) -> tuple[Samples, str]:
    """The proof rows where these are the conversion's samples; otherwise all of them, with a sentence."""
    if split is None:
        return samples, "the bundle does not say which rows its proof had, so all rows were compared"
    different = without_copies(samples)
    for taken, together in ((different, False), (samples, True)):  # as conversions do now, and as release 0.1.0 did
        if len(taken) != split.calibration + split.choice + split.proof:
            continue
        try:
            parts = split_samples(taken, split.calibration / len(taken), together=together)
        except DataError:  # no conversion could split them, so these are other samples
            continue
        if parts.digest == split.digest and len(parts.proof) == split.proof:
            return parts.proof, ""
    return samples, "these are not the samples of the conversion, so all rows were compared"


def _whole_streams(sizes: np.ndarray, most: int) -> tuple[tuple[int, ...], int]:
    """The sizes of the first streams with at most `most` rows together, but at least one, and their rows."""
    taken: list[int] = []
    for size in (int(one) for one in sizes if one):
        if taken and sum(taken) + size > most:
            break
        taken.append(size)
    return tuple(taken), sum(taken)
