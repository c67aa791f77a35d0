"""WordPiece tokenizing for BERT models: words, split into the longest known pieces from the left."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping

from edgekit.errors import DataError, ManifestError

UNKNOWN_TOKEN, PADDING, FIRST, LAST = "[UNK]", "[PAD]", "[CLS]", "[SEP]"
MAX_WORD = 100
MAX_VOCABULARY = 1_000_000


def parse_vocabulary(data: bytes) -> dict[str, int]:
    """Parse a vocabulary, UTF-8 with one piece per line, to the index of each piece.

    Raises:
        ManifestError: The file is not UTF-8, is too long, or lacks one of the four special pieces.
    """
    try:
        lines = data.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"the vocabulary is not UTF-8: {error}") from error
    if len(lines) > MAX_VOCABULARY:
        raise ManifestError(f"the vocabulary has {len(lines)} pieces, the limit is {MAX_VOCABULARY}")
    indices: dict[str, int] = {}
    for index, line in enumerate(lines):
        indices.setdefault(line.rstrip("\r"), index)
    missing = [piece for piece in (UNKNOWN_TOKEN, PADDING, FIRST, LAST) if piece not in indices]
    if missing:
        raise ManifestError(
            f"the vocabulary lacks {', '.join(missing)}", advice="The file must have one piece per line."
        )
    return indices


def token_ids(text: str, vocabulary: Mapping[str, int], *, length: int, lower: bool) -> list[int]:
    """At most `length` indices: [CLS], as many pieces of `text` as fit, [SEP]; without padding."""
    ids = [vocabulary[FIRST]]
    for word in words(text, lower=lower):
        if len(ids) >= length - 1:
            break
        ids += [vocabulary[piece] for piece in pieces(word, vocabulary)]
    return [*ids[: length - 1], vocabulary[LAST]]


def words(text: str, *, lower: bool) -> Iterator[str]:
    """Words, punctuation marks and ideographs of `text`; `lower` also drops accents, for uncased models."""
    if lower:
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    word: list[str] = []
    for char in text:
        alone = _is_mark(char) or _is_ideograph(char)
        if not alone and not char.isspace():
            if not _is_control(char):
                word.append(char)
            continue
        if word:
            yield "".join(word)
            word = []
        if alone:
            yield char
    if word:
        yield "".join(word)


def pieces(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """The longest known pieces from the left, with ## before all but the first; [UNK] if there are none."""
    known: list[str] = []
    start = 0
    while start < len(word) and len(word) <= MAX_WORD:
        prefix = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary), None)
        if end is None:
            return [UNKNOWN_TOKEN]
        known.append(prefix + word[start:end])
        start = end
    return known or [UNKNOWN_TOKEN]


def decode_text(data: bytes, max_bytes: int) -> str:
    """Decode UTF-8 text.

    Raises:
        DataError: The bytes are not UTF-8, or more than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise DataError(f"the text has {len(data)} bytes, the limit is {max_bytes}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"the text is not UTF-8: {error.reason} at byte {error.start}") from error


def _is_mark(char: str) -> bool:
    return (char.isascii() and char.isprintable() and not char.isalnum() and char != " ") or unicodedata.category(
        char
    ).startswith("P")


def _is_control(char: str) -> bool:
    return char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf")


_IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


def _is_ideograph(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in _IDEOGRAPHS)
