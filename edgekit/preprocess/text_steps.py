"""The step before the model for text: word pieces."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

from typing import Literal

import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess import words
from edgekit.preprocess.steps import BYTES, ProcessingStep, SampleType, Tools, require
from edgekit.tensors import Array, DType

MAX_TEXT_BYTES = 2**20


class WordPieces(ProcessingStep, frozen=True, tag="word-pieces"):
    """Convert UTF-8 text to vocabulary indices, [CLS] ... [SEP], padded with [PAD] to `length`.

    Attributes:
        vocabulary: A file of the bundle with one piece per line.
        length: Number of indices.
        lower: Convert to lower case and drop accents, for uncased models.
        dtype: Dtype of the indices.
        mask: Name of the model's input for the mask (1 for pieces, 0 for padding); empty if it has none.
        types: Name of the model's input for token types, which are all 0; empty if it has none.
        max_bytes: Longer texts are refused.
    """

    vocabulary: str
    length: int = 128
    lower: bool = True
    dtype: Literal["int32", "int64"] = "int64"
    mask: str = ""
    types: str = ""
    max_bytes: int = 2**16

    def output_type(self, source: SampleType) -> SampleType:
        """(length,) integers."""
        require(self, source == BYTES, source, "bytes")
        if not 2 <= self.length <= 65_536 or not 1 <= self.max_bytes <= MAX_TEXT_BYTES:
            raise DataError(
                f"{self.name}: length is {self.length} and max_bytes {self.max_bytes}, expected 2 to 65536 and 1 to "
                f"{MAX_TEXT_BYTES}"
            )
        return SampleType(DType(self.dtype), (self.length,))

    def files(self) -> dict[str, str]:
        """The file of the vocabulary."""
        return {self.vocabulary: "vocabulary"}

    def apply(self, value: bytes, tools: Tools) -> Array:
        """Tokenize."""
        vocabulary = tools.vocabularies[self.vocabulary]
        text = words.decode_text(value, self.max_bytes)
        ids = words.token_ids(text, vocabulary, length=self.length, lower=self.lower)
        padded = np.full(self.length, vocabulary[words.PADDING], np.dtype(self.dtype))
        padded[: len(ids)] = ids
        return padded

    def other_inputs(self, ids: Array, tools: Tools) -> dict[str, Array]:
        """Values of the mask and type inputs for one sample's `ids` (length,)."""
        values = {}
        if self.mask:
            # [SEP] ends every text, so everything after the last one is padding.
            end = int(np.flatnonzero(ids == tools.vocabularies[self.vocabulary][words.LAST])[-1])
            values[self.mask] = (np.arange(self.length) <= end).astype(ids.dtype)
        if self.types:
            values[self.types] = np.zeros_like(ids)
        return values
