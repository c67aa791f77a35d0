"""The step that makes rows of indices of a text."""

from __future__ import annotations

from typing import Literal

import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess import words
from edgekit.preprocess.steps import BYTES, Flow, ProcessingStep, Tools, need
from edgekit.tensors import Array, DType

MAX_TEXT_BYTES = 2**20


class WordPieces(ProcessingStep, frozen=True, tag="word-pieces"):
    """UTF-8 text to indices in a vocabulary, [CLS] ... [SEP], padded with [PAD] to `length`.

    Attributes:
        vocabulary: A file of the bundle: one piece a line.
        lower: Lower case without accents, for uncased models.
        mask, types: Inputs of the model that get 1 for pieces and 0 for padding, and zeros; empty where it has none.
    """

    vocabulary: str
    length: int = 128
    lower: bool = True
    dtype: Literal["int32", "int64"] = "int64"
    mask: str = ""
    types: str = ""
    max_bytes: int = 2**16

    def flow(self, given: Flow) -> Flow:
        """(length,) integers."""
        need(self, given == BYTES, given, "bytes")
        if not 2 <= self.length <= 65_536 or not 1 <= self.max_bytes <= MAX_TEXT_BYTES:
            raise DataError(f"{self.name}: length from 2 to 65536 and max_bytes up to {MAX_TEXT_BYTES} are expected")
        return Flow(DType(self.dtype), (self.length,))

    def files(self) -> dict[str, str]:
        """The vocabulary."""
        return {self.vocabulary: "vocabulary"}

    def apply(self, value: bytes, tools: Tools) -> Array:
        """Tokenize."""
        vocabulary = tools.vocabularies[self.vocabulary]
        text = words.decode_text(value, self.max_bytes)
        ids = words.token_ids(text, vocabulary, length=self.length, lower=self.lower)
        padded = np.full(self.length, vocabulary[words.PADDING], np.dtype(self.dtype))
        padded[: len(ids)] = ids
        return padded

    def beside(self, ids: Array, tools: Tools) -> dict[str, Array]:
        """What other inputs get, for one sample's `ids` (length,)."""
        found = {}
        if self.mask:
            # [SEP] ends every text, so what follows the last one is padding, whatever pieces the text held.
            end = int(np.flatnonzero(ids == tools.vocabularies[self.vocabulary][words.LAST])[-1])
            found[self.mask] = (np.arange(self.length) <= end).astype(ids.dtype)
        if self.types:
            found[self.types] = np.zeros_like(ids)
        return found
