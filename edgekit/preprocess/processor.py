"""Processor: runs a Processing; conversion, agent and cloud tier use it alike."""

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
MAX_INPUT_BYTES = 2**28  # of one filled input, because few bytes of text or image can become very many numbers
ImageDecoder = Callable[[bytes, str, int, bool], Array]


class Processor:
    """Turns bytes into a model's inputs, and its outputs into answers. Safe for concurrent use.

    Args:
        processing: The steps.
        inputs, outputs: Logical tensors of the model.
        read: Returns the bytes of a bundle's file by its name; the caller has verified them.
        decode_image: See `Tools.decode_image`.

    Raises:
        ManifestError: The steps do not fit the model (the message names every fault), or a file has a wrong format.
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

    def has_raw(self, inputs: Mapping[str, Array]) -> bool:
        """True if `inputs` has bytes to decode, and not only the model's own tensors."""
        return any(self._is_raw(name, value) for name, value in inputs.items())

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The model's inputs. Raw inputs, BYTES of shape (N,) or (N, 1), are decoded; other inputs stay unchanged.

        Raises:
            DataError: Bytes cannot be decoded, a shape is wrong, an input is present twice, or the rows have different
                sizes after the steps.
        """
        model_inputs = {name: value for name, value in inputs.items() if not self._is_raw(name, value)}
        for name, value in inputs.items():
            if not self._is_raw(name, value):
                continue
            items = _items(name, value)
            for filled, rows in self._rows(name, self._by_raw[name], items, limit=MAX_INPUT_BYTES).items():
                if filled in model_inputs:
                    raise DataError(f"input {filled!r} is present, and {name!r} fills it too; send one of them")
                model_inputs[filled] = rows
        return model_inputs

    def convert_rows(self, raw: str, rows: Sequence[Any], start: int = 0) -> dict[str, Array]:
        """The model's inputs from any number of rows of one raw input.

        Args:
            raw: Name of the raw input.
            rows: One value for each row.
            start: Index of the first step to run: 0 for bytes, 1 for samples that are already decoded.

        Raises:
            DataError: As `before`.
        """
        return self._rows(raw, self._by_raw[raw], rows, start=start)

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answers from the model's outputs (N, ...).

        Raises:
            DataError: The outputs have sizes that a step does not support.
        """
        answers = dict(outputs)
        for step in self._processing.after:
            answers = step.apply(answers, self._tools)
        return answers

    def _is_raw(self, name: str, value: Array) -> bool:
        return name in self._by_raw and value.dtype == object

    def _rows(
        self, name: str, before: Before, items: Sequence[Any], *, start: int = 0, limit: int | None = None
    ) -> dict[str, Array]:
        columns: dict[str, list[Array]] = {}
        for index, item in enumerate(items):
            try:
                one = self._one(self._filled[name], before, item, start)
            except DataError as error:
                raise DataError(f"{name}[{index}]: {error}") from error
            for filled, value in one.items():
                columns.setdefault(filled, []).append(value)
                if limit is not None and value.nbytes * len(items) > limit:
                    raise DataError(f"{name}: {len(items)} rows of {value.nbytes} bytes each, the limit is {limit}")
                if value.shape != columns[filled][0].shape:
                    shapes = f"{list(columns[filled][0].shape)} and {list(value.shape)}"
                    raise DataError(
                        f"{name}[{index}]: rows have the shapes {shapes} after the steps; send them one by one"
                    )
        return {filled: np.stack(rows) for filled, rows in columns.items()}

    def _one(self, filled: str, before: Before, value: Any, start: int) -> dict[str, Array]:
        others: dict[str, Array] = {}
        for step in before.steps[start:]:
            value = step.apply(value, self._tools)
            if isinstance(step, WordPieces):
                others.update(step.other_inputs(value, self._tools))
        return {filled: value, **others}


def parse_anchors(name: str, data: bytes) -> Array:
    """Parse anchors (M, 4) float32 from a .npy file.

    Raises:
        ManifestError: The file has another format, dtype or shape.
    """
    try:
        anchors = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ManifestError(f"anchors {name} cannot be read as .npy: {error}") from error
    if not isinstance(anchors, np.ndarray):
        raise ManifestError(f"anchors {name} are an archive, expected one .npy array")
    array: Array = anchors
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype != np.float32 or not np.isfinite(array).all():
        raise ManifestError(
            f"anchors {name} are {array.dtype} {list(array.shape)}, expected finite float32 numbers of shape [M, 4]"
        )
    return array


def _items(name: str, value: Array) -> list[bytes]:
    if value.ndim not in (1, 2) or (value.ndim == 2 and value.shape[1] != 1):
        raise DataError(f"{name}: the array of bytes has shape {list(value.shape)}, expected [N] or [N, 1]")
    if not 1 <= len(value) <= MAX_ROWS:
        raise DataError(f"{name}: {len(value)} rows of bytes, expected 1 to {MAX_ROWS}")
    items: list[Any] = value.reshape(-1).tolist()
    if not all(isinstance(item, bytes) for item in items):
        raise DataError(f"{name}: some elements are not bytes")
    return items
