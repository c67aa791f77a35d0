"""Processor: does what a Processing says, in conversion, in the agent and in the cloud tier alike."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import DataError, ManifestError
from edgekit.preprocess.document import Before, Processing, output_labels, output_specs, processing_faults, raw_inputs
from edgekit.preprocess.steps import Tools
from edgekit.preprocess.text_steps import WordPieces
from edgekit.preprocess.words import parse_vocabulary
from edgekit.tensors import Array, TensorSpec

MAX_ROWS = 256
MAX_BYTES = 2**28  # of one input that is made: a few bytes of text or picture may become very many numbers
ImageDecoder = Callable[[bytes, str, int, bool], Array]


class Processor:
    """Bytes to a model's inputs, and its outputs to answers. Safe for concurrent use.

    Args:
        processing: What to do.
        inputs, outputs: Logical tensors of the model.
        read: Gives the bytes of a bundle's file by its name; the caller has verified them.
        decode_image: As `Tools.decode_image`.

    Raises:
        ManifestError: the steps do not fit the model, or a file is not what its step needs; names every fault.
    """

    def __init__(
        self,
        processing: Processing,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        read: Callable[[str], bytes],
        decode_image: ImageDecoder,
    ) -> None:
        faults = processing_faults(processing, inputs, outputs)
        if faults:
            raise ManifestError("the processing does not fit the model: " + "; ".join(faults))
        self.raw = raw_inputs(processing, inputs)
        self.inputs, self.outputs = tuple(inputs), output_specs(processing, outputs)
        self.labels = output_labels(processing)
        self._specs = {spec.name: spec for spec in inputs}
        self._processing = processing
        self._by_raw = dict(zip((raw.name for raw in self.raw), processing.before, strict=True))
        self._filled = {raw.name: raw.input for raw in self.raw}
        files = {name: (kind, read(name)) for name, kind in processing.files().items()}
        self._tools = Tools(
            decode_image,
            {name: parse_vocabulary(data) for name, (kind, data) in files.items() if kind == "vocabulary"},
            {name: parse_anchors(name, data) for name, (kind, data) in files.items() if kind == "anchors"},
        )

    def wanted(self, inputs: Mapping[str, Array]) -> bool:
        """Whether something in `inputs` is to be decoded, rather than the model's own tensors alone."""
        return any(self._is_raw(name, value) for name, value in inputs.items())

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The model's inputs: raw ones, BYTES of shape (N,) or (N, 1), are decoded, others are taken as they are.

        Raises:
            DataError: bytes that are not what the first step decodes, a wrong shape, an input that is given twice, or
                rows that came out in different sizes.
        """
        found = {name: value for name, value in inputs.items() if not self._is_raw(name, value)}
        for name, value in inputs.items():
            if not self._is_raw(name, value):
                continue
            for filled, rows in self._rows(name, self._by_raw[name], _items(name, value), limit=MAX_BYTES).items():
                if filled in found:
                    raise DataError(f"input {filled!r} is given, and made from {name!r} too; send one of them")
                found[filled] = rows
        return found

    def many(self, raw: str, rows: Sequence[Any], start: int = 0) -> dict[str, Array]:
        """The model's inputs from any number of rows, by the steps from `start` on: 1 takes what the first decodes to.

        Raises:
            DataError: as `before`.
        """
        return self._rows(raw, self._by_raw[raw], rows, start=start)

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answers of the model's outputs (N, ...).

        Raises:
            DataError: the outputs have sizes that a step cannot take.
        """
        found = dict(outputs)
        for step in self._processing.after:
            found = step.apply(found, self._tools)
        return found

    def _is_raw(self, name: str, value: Array) -> bool:
        return name in self._by_raw and value.dtype == object

    def _rows(
        self, name: str, before: Before, items: Sequence[Any], *, start: int = 0, limit: int | None = None
    ) -> dict[str, Array]:
        made: dict[str, list[Array]] = {}
        for at, item in enumerate(items):
            try:
                one = self._one(self._filled[name], before, item, start)
            except DataError as error:
                raise DataError(f"{name}[{at}]: {error}") from error
            for filled, value in one.items():
                made.setdefault(filled, []).append(value)
                if limit is not None and value.nbytes * len(items) > limit:
                    raise DataError(f"{name}: {len(items)} rows of {value.nbytes} bytes each, the limit is {limit}")
                if value.shape != made[filled][0].shape:
                    shapes = f"{list(made[filled][0].shape)} and {list(value.shape)}"
                    raise DataError(f"{name}[{at}]: rows came out as {shapes}; send them one by one")
        return {filled: np.stack(rows) for filled, rows in made.items()}

    def _one(self, filled: str, before: Before, value: Any, start: int) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for step in before.steps[start:]:
            value = step.apply(value, self._tools)
            if isinstance(step, WordPieces):
                found.update(step.beside(value, self._tools))
        return {filled: value, **found}


def parse_anchors(name: str, data: bytes) -> Array:
    """Anchors (M, 4) float32 of a .npy file.

    Raises:
        ManifestError: it is something else.
    """
    try:
        anchors = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ManifestError(f"anchors {name} cannot be read as .npy: {error}") from error
    if not isinstance(anchors, np.ndarray):
        raise ManifestError(f"anchors {name} are an archive, expected one .npy array")
    found: Array = anchors
    if found.ndim != 2 or found.shape[1] != 4 or found.dtype != np.float32 or not np.isfinite(found).all():
        raise ManifestError(f"anchors {name} are not finite float32 numbers of shape [M, 4]")
    return found


def _items(name: str, value: Array) -> list[bytes]:
    if value.ndim not in (1, 2) or (value.ndim == 2 and value.shape[1] != 1):
        raise DataError(f"{name}: bytes have shape {list(value.shape)}, expected [N] or [N, 1]")
    if not 1 <= len(value) <= MAX_ROWS:
        raise DataError(f"{name}: {len(value)} rows of bytes, expected 1 to {MAX_ROWS}")
    items: list[Any] = value.reshape(-1).tolist()
    if not all(isinstance(item, bytes) for item in items):
        raise DataError(f"{name}: holds something else than bytes")
    return items
