"""Reads data files into arrays, checks them against a model's inputs, and splits them by content."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters.archives import damage_of
from converters.data.element_types import in_type, lost_in_float32, unfit
from converters.data.image_folders import load_folder
from converters.data.preprocessing import rows_from_arrays
from converters.data.streams import STREAM, split_streams, stream_ids
from converters.graph.interface import Interface, Number
from converters.graph.stated import DataArray
from edgekit.errors import DataError
from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.preprocess import Processor
from edgekit.samples.table import PREFIX as COLLECTED
from edgekit.samples.table import REASON
from edgekit.tensors import Array, DType, TensorSpec

LABELS, OTHER_LABELS = "y", "y_"  # labels of the decision output, and the prefix for those of another output
GROUPS = "group"
SINGLE = "x"
CALIBRATION_SHARE, CHOICE_SHARE = 0.2, 0.2
LEAST_ROWS = 50  # of calibration, where no proof is possible: layers that are fitted to fewer lose much on others
MOST_CALIBRATION, MOST_ROWS = 0.5, 256  # share and rows of calibration where a point estimate is accepted


class Samples(msgspec.Struct, frozen=True):
    """Rows of data.

    Attributes:
        inputs: One array (N, ...) per model input, by its name.
        labels: Class indices (N,) or arrays (N, ...); None where there are none.
        classes: Names of the classes in order, where a folder of images has them.
        other_labels: Labels of other outputs (N, ...), by the output's name.
        groups: Group of each row (N,), names or integers; None where there are none.
        stream: Stream of each row (N,), from 0 on; None for a model without state, and before it is known.
        reasons: Why a device kept each row (N,), of `SampleReason`; None for data that `edgekit collect` did not write.
        originals: The bytes of each row (N,) by the name under which clients send them; empty where they are not kept.
        feeds: For a model with state, the output that feeds an input, by the input's name; `inputs` has the states
            of the float model (see `converters.data.stateful`).
    """

    inputs: dict[str, Array]
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    other_labels: dict[str, Array] = {}
    groups: Array | None = None
    stream: Array | None = None
    feeds: dict[str, str] = {}
    originals: dict[str, Array] = {}
    reasons: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def arrays(self) -> list[Array | None]:
        """Every array, in an order that depends on names only; for digests."""
        named = [mapping[name] for mapping in (self.inputs, self.other_labels) for name in sorted(mapping)]
        return [self.labels, self.groups, self.stream, *named]

    def take(self, rows: Array | slice) -> Samples:
        """The given rows."""
        return Samples(
            {name: value[rows] for name, value in self.inputs.items()},
            None if self.labels is None else self.labels[rows],
            self.classes,
            {name: value[rows] for name, value in self.other_labels.items()},
            None if self.groups is None else self.groups[rows],
            None if self.stream is None else self.stream[rows],
            self.feeds,
            {name: value[rows] for name, value in self.originals.items()},
            None if self.reasons is None else self.reasons[rows],
        )

    @property
    def hard(self) -> dict[str, int]:
        """The rows that devices kept for another reason than chance, which are no fair sample: counts by reason."""
        if self.reasons is None:
            return {}
        counts = Counter(self.reasons.tolist())
        return {reason: n for reason, n in sorted(counts.items()) if reason != SampleReason.RANDOM.value}

    def labels_of(self, output: str) -> Array | None:
        """The labels (N, ...) under the name of an output (``y_OUTPUT``); None where there are none."""
        return self.other_labels.get(output)

    def with_labels_of(self, output: str) -> Samples:
        """The same rows, with the labels ``y`` as those of the output `output`.

        Raises:
            DataError: this output has labels under its own name too.
        """
        if self.labels is None:
            return self
        if output in self.other_labels:
            raise DataError(
                f"the data hold labels of output {output} twice: as {LABELS!r} and as {OTHER_LABELS + output!r}",
                advice=f"{output} is the decision output; give one of the two.",
            )
        return msgspec.structs.replace(self, other_labels={**self.other_labels, output: self.labels})


class Split(msgspec.Struct, frozen=True):
    """Data in three parts; no row is in two parts.

    Attributes:
        digest: sha256 of all rows, sorted by their digests; it does not depend on the order of the rows.
        calibration: Rows for activation ranges, rounding and pruning (20 %, or more: see `calibration_share`).
        choice: Rows for the choice between candidates (20 %).
        proof: Rows for the proof of the chosen candidate (60 %, or less).
    """

    digest: str
    calibration: Samples
    choice: Samples
    proof: Samples


def load_samples(
    path: Path,
    specs: Sequence[TensorSpec],
    processor: Processor | None = None,
    classes: Sequence[str] = (),
    interface: Interface | None = None,
) -> Samples:
    """Read .npz (``x``, or one array per input under its name, and ``y``), .npy, or a folder of images.

    Of the arrays whose names begin with ``edgekit_``, which `edgekit collect` writes beside the inputs, only the
    reasons are read.
    Labels of another output than the decision output are ``y_OUTPUT``, and ``group`` holds the group of each row. For a
    model with state, ``stream`` holds the stream of each row; without it all rows are one stream.

    Args:
        path: The file or folder.
        specs: The inputs that the model reads, with a leading sample axis each. Numbers in another type are taken where
            `converters.data.element_types` allows it.
        processor: Preprocessing steps of the model; None without steps. They run on images of a folder, and on arrays
            that are decoded but not preprocessed.
        classes: Names of the classes in the model's order, where they are known.
        interface: The source's interface. The file may hold its fixed and unread inputs or not. Its state is not in
            data.

    Raises:
        MissingExtraError: a folder is read, and Pillow is not installed.
        DataError: the file does not exist or has another format, an array is missing or unknown, or a shape or dtype
            does not fit `specs`. The message has every fault, with the found and the expected value.
    """
    if not path.exists():
        raise DataError(f"data file {str(path)!r} does not exist", advice="Check the path.")
    feeds = interface.state if interface is not None else {}
    specs = [spec for spec in specs if spec.name not in feeds]
    if path.is_dir():
        inputs, indices, names = load_folder(path, processor, classes)
        samples = _checked(path, inputs, {} if indices is None else {LABELS: indices}, specs, names)
        return _in_streams(samples, None) if feeds else samples
    arrays = _read(path)
    reasons = arrays.pop(REASON, None)
    taken = {spec.name for spec in (*specs, *(one.spec for one in (interface.inputs if interface else ())))}
    streams = _streams_in(path, arrays, specs, feeds)
    beside = {
        name: arrays.pop(name)
        for name in list(arrays)
        if name not in taken and (name in (LABELS, GROUPS) or name.startswith(OTHER_LABELS))
    }
    if interface is not None:
        arrays = _of_interface(path, arrays, interface)
        _require_float32(path, arrays, interface)
    if processor is not None:
        arrays = rows_from_arrays(processor, arrays)
    samples = _checked(path, arrays, beside, specs, tuple(classes))
    if reasons is not None:
        samples = msgspec.structs.replace(samples, reasons=_checked_reasons(path, reasons, len(samples)))
    return _in_streams(samples, streams) if feeds else samples


def _require_float32(path: Path, arrays: Mapping[str, Array], interface: Interface) -> None:
    """Check that inputs in float64 keep their values in float32, in which every artifact calculates."""
    doubles = [one.spec.name for one in interface.inputs if one.spec.dtype is DType.FLOAT64]
    faults = [fault for name in doubles if name in arrays and (fault := lost_in_float32(name, arrays[name]))]
    if faults:
        raise DataError(
            f"{path}: {'; '.join(faults)}",
            advice="Subtract the offset before the model, in data and on devices, and export the model for the rest.",
        )


def _checked_reasons(path: Path, reasons: Array, rows: int) -> Array:
    if reasons.shape != (rows,) or reasons.dtype.kind != "U":
        raise DataError(
            f"{path}: {REASON} is {reasons.dtype} of shape {list(reasons.shape)}, expected texts of shape [{rows}]",
            advice="Keep the rows of all arrays of a file of `edgekit collect` together.",
        )
    return reasons


def _streams_in(
    path: Path, arrays: dict[str, Array], specs: Sequence[TensorSpec], feeds: Mapping[str, str]
) -> Array | None:
    """Take the ids of streams from the arrays. Raises DataError where the arrays hold state."""
    given = [name for name in feeds if name in arrays]
    if given:
        raise DataError(
            f"{path} holds the array {given[0]!r}, which is state of the model: state is never in data",
            advice="Leave it out; every stream starts from zero, and the model's own state is used.",
        )
    return arrays.pop(STREAM, None) if feeds and STREAM not in {spec.name for spec in specs} else None


def _in_streams(samples: Samples, ids: Array | None) -> Samples:
    return msgspec.structs.replace(samples, stream=stream_ids(ids, len(samples)))


def _checked(
    path: Path,
    arrays: dict[str, Array],
    beside: dict[str, Array],
    specs: Sequence[TensorSpec],
    classes: tuple[str, ...],
) -> Samples:
    """The arrays as samples. Raises DataError with every reason why they do not fit `specs`.

    Args:
        path: The data file.
        arrays: The inputs.
        beside: Labels and groups, by the name of their array.
        specs: Logical inputs of the model.
        classes: Names of the classes.
    """
    if len(specs) == 1 and set(arrays) == {SINGLE}:
        arrays = {specs[0].name: arrays[SINGLE]}
    wanted = [spec.name for spec in specs]
    if set(arrays) != set(wanted):
        raise DataError(
            f"{path} holds the arrays {', '.join(sorted(arrays)) or 'none'}, expected {', '.join(sorted(wanted))}"
            + (f" or {SINGLE}" if len(wanted) == 1 and wanted != [SINGLE] else "")
            + f", and {LABELS} for labels",
            advice="Name the arrays as the model names its inputs; `edgekit inspect` shows them.",
        )
    if odd := [f"{name} is {value.dtype}" for name, value in arrays.items() if value.dtype.kind not in "biufOSU"]:
        raise DataError(f"{path} holds types that no model takes: {', '.join(odd)}", advice="Save real numbers.")
    arrays = {spec.name: in_type(arrays[spec.name], spec.dtype.numpy) for spec in specs}
    faults = [fault for spec in specs for fault in spec.faults(arrays[spec.name])]
    lengths = {name: len(value) for name, value in arrays.items() if value.ndim}
    lengths.update({name: len(value) if value.ndim else 0 for name, value in beside.items()})
    if len(set(lengths.values())) > 1:
        faults.append("numbers of rows differ: " + ", ".join(f"{name} has {n}" for name, n in lengths.items()))
    if not faults and not len(arrays[wanted[0]]):
        faults.append("the file holds no rows")
    for name, value in beside.items():
        faults += _group_faults(value) if name == GROUPS else _label_faults(name, value)
    if not faults:
        faults = [
            f"{name}: holds NaN or infinity" for name, value in {**arrays, **beside}.items() if not _finite(value)
        ]
    if faults:
        raise DataError(
            f"{path} does not fit the model: " + "; ".join(faults),
            advice=" ".join(
                ["The first axis of each array counts the samples, also where the model has no batch."]
                + [line for spec in specs for line in unfit(spec, arrays[spec.name])]
            ),
        )
    others = {name.removeprefix(OTHER_LABELS): beside[name] for name in beside if name.startswith(OTHER_LABELS)}
    return Samples(arrays, beside.get(LABELS), classes, others, beside.get(GROUPS))


def _label_faults(name: str, labels: Array) -> list[str]:
    known = labels.dtype.kind in "iufb"
    if known:
        return []
    classes = ", classes counted from 0 in the order of the model's scores" if labels.dtype.kind in "US" else ""
    return [f"{name}: dtype is {labels.dtype}, expected class indices or numbers{classes}"]


def _group_faults(groups: Array) -> list[str]:
    if groups.ndim == 1 and groups.dtype.kind in "iuUSb":
        return []
    return [
        f"{GROUPS}: an array of {groups.dtype} and shape {list(groups.shape)}, expected names or integers of shape [N]"
    ]


def _of_interface(path: Path, arrays: dict[str, Array], interface: Interface) -> dict[str, Array]:
    """The arrays that the model reads. Raises DataError where a fixed input has another value."""
    faults = []
    for one in interface.others:
        value = arrays.get(one.spec.name)
        if one.value is not None and value is not None and not bool(np.all(value == one.value)):
            found = value[value != one.value].ravel()[0]
            faults.append(f"{one.spec.name} holds {found}, and the model is fixed to {one.value}")
    if faults:
        raise DataError(
            f"{path} does not fit the model: {'; '.join(faults)}",
            advice="Convert the model once for each value, with --fix NAME=VALUE and the samples of that value.",
        )
    names = {one.spec.name for one in interface.others}
    whole = {one.spec.name: one.spec.shape for one in interface.inputs if one.spec.batch_axis is None}
    for name in whole.keys() & arrays.keys():  # samples of the whole input, with its first axis of 1
        if whole[name][:1] == (1,) and arrays[name].shape[1:] == whole[name]:
            arrays[name] = arrays[name][:, 0]
    return {name: value for name, value in arrays.items() if name not in names}


def data_arrays(path: Path) -> dict[str, DataArray]:
    """The shapes of the arrays in a data file, by name; empty for a folder or a file that cannot be read."""
    if not path.is_file():
        return {}
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {SINGLE: DataArray(loaded.shape)}
        with loaded:
            shapes = {name: _shape_in(path, f"{name}.npy") for name in loaded.files}
            return {name: DataArray(shape, _only_value(loaded, name, shape)) for name, shape in shapes.items()}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
        return {}  # `load_samples` reports it, once the model is loaded


def _shape_in(path: Path, member: str) -> tuple[int, ...]:
    """The shape of one array of a .npz file, without its values."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return tuple(read(file)[0])


def _only_value(loaded: Any, name: str, shape: tuple[int, ...]) -> Number | None:
    """The value of an array with one number; None for others."""
    if math.prod(shape) != 1:
        return None
    value = loaded[name]
    number: Number | None = value.ravel()[0].item() if value.dtype.kind in "iufb" else None
    return number


def calibration_share(rows: int, max_drop: float, confidence: float) -> float:
    """The calibration split's share of `rows` where a point estimate is accepted: 20 to 50 %.

    A proof without any loss needs ln(1 - confidence) / ln(1 - max_drop) rows (from the binomial distribution). Rows of
    the proof split beyond these go to calibration, until it has `MOST_ROWS`. Where too few rows are there for a proof,
    calibration gets `LEAST_ROWS` of them, at most half.

    Args:
        rows: Number of all rows.
        max_drop: The budget; one that is no share leaves 20 %.
        confidence: Of the bound on the drop.
    """
    if not 0.0 < max_drop < 1.0:
        return CALIBRATION_SHARE
    needed = math.ceil(math.log(1.0 - confidence) / math.log(1.0 - max_drop)) + 1  # one more for rounded shares
    spare = 1.0 - CHOICE_SHARE - needed / rows
    if spare < CALIBRATION_SHARE:
        spare = LEAST_ROWS / rows
    return max(min(spare, MOST_CALIBRATION, MOST_ROWS / rows), CALIBRATION_SHARE)


def split_samples(samples: Samples, calibration: float = CALIBRATION_SHARE, *, together: bool = False) -> Split:
    """Split data into its three parts by the digest of each row: the order of the rows does not matter.

    Shares are `calibration`, 20 % and the rest. Equal rows are spread over the parts as if they were different: where
    inputs have few values, each part is a fair sample of them only so. Copies are left out before
    (`converters.data.repeats`). Streams stay whole, and equal streams in one part (see `split_streams`).

    Args:
        samples: The data.
        calibration: Share of the first part.
        together: Equal rows are in one part, as in bundles of release 0.1.0; shares are then near the wished ones.

    Raises:
        DataError: there are fewer than five rows, or too few rows in streams.
    """
    digests = row_digests(samples)
    if samples.stream is None and not together:
        digests = _told_apart(digests)
    if samples.stream is not None:
        digest, rows, streams = split_streams(samples.stream, digests, (calibration, CHOICE_SHARE))
        samples = msgspec.structs.replace(samples, stream=streams)
        return Split(digest.hex(), *(samples.take(part) for part in rows))
    order = np.array(sorted(range(len(samples)), key=lambda row: digests[row]), dtype=np.int64)
    whole = hashlib.sha256(b"".join(digests[row] for row in order)).hexdigest()
    first = _end(order, digests, round(len(samples) * calibration))
    second = _end(order, digests, max(first, round(len(samples) * (calibration + CHOICE_SHARE))))
    parts = [order[:first], order[first:second], order[second:]]
    if not all(len(part) for part in parts):
        raise DataError(
            f"{len(samples)} rows cannot be split in three, expected at least 5 that are no copies of each other",
            advice="Give more samples; 500 with labels can prove a budget of one point at 95 %.",
        )
    # Within a part, rows keep the order of the file, so that people can follow them.
    return Split(whole, *(samples.take(np.sort(part)) for part in parts))


def _end(order: Array, digests: list[bytes], at: int) -> int:
    """Move the end of a part forward past rows that equal the row before it."""
    while 0 < at < len(order) and digests[order[at]] == digests[order[at - 1]]:
        at += 1
    return at


def row_digests(samples: Samples) -> list[bytes]:
    """sha256 of the inputs of each row; equal rows have equal ones."""
    return [_row_digest(samples, row) for row in range(len(samples))]


def _row_digest(samples: Samples, row: int) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(samples.inputs):
        digest.update(np.ascontiguousarray(samples.inputs[name][row]).tobytes())
    return digest.digest()


def _told_apart(digests: Sequence[bytes]) -> list[bytes]:
    """Other digests for the second and further rows that are equal."""
    seen = Counter[bytes]()
    result = []
    for digest in digests:
        count = seen[digest]
        seen[digest] += 1
        result.append(hashlib.sha256(digest + count.to_bytes(8, "big")).digest() if count else digest)
    return result


def _read(path: Path) -> dict[str, Array]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {SINGLE: loaded}
        with loaded:
            names = [name for name in loaded.files if name == REASON or not name.startswith(COLLECTED)]
            return {name: loaded[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as .npz or .npy: {_fault(path, error)}",
            advice="Save it with numpy.savez(path, x=..., y=...), without Python objects.",
        ) from error


def _fault(path: Path, error: Exception) -> str:
    """The reason why a data file cannot be read, in words of edgekit."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        return "it is empty"
    if start == b"PK" and (damage := damage_of(path)):
        return damage
    if "pickle" in str(error):  # as NumPy says for arrays of objects, and for files of any other kind
        return "it holds Python objects, or is a file of another kind"
    return "its contents are damaged"


def _finite(value: Array) -> bool:
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())
