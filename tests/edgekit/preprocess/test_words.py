"""WordPiece tokenizer: words, pieces, limits and vocabularies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DataError, ManifestError
from edgekit.preprocess import words

LINES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "run", "##ning", "!", "中", "cafe"]
VOCABULARY = words.parse_vocabulary("\n".join(LINES).encode() + b"\n")


def ids(text: str, length: int = 16, lower: bool = True) -> list[str]:
    return [LINES[i] for i in words.token_ids(text, VOCABULARY, length=length, lower=lower)]


def test_the_longest_pieces_from_the_left() -> None:
    """Punctuation is separate, and words without known pieces are unknown as a whole."""
    assert ids("Unaffable running! unx") == ["[CLS]", "un", "##aff", "##able", "run", "##ning", "!", "[UNK]", "[SEP]"]


def test_accents_ideographs_and_control_characters() -> None:
    """Accents are dropped, ideographs are words, and control characters are ignored."""
    assert ids("Café\u200b中中\x00") == ["[CLS]", "cafe", "中", "中", "[SEP]"]
    assert ids("Café", lower=False) == ["[CLS]", "[UNK]", "[SEP]"]


def test_long_texts_are_cut_before_the_last_mark() -> None:
    """The result never exceeds the length and always ends in [SEP]."""
    assert ids("unaffable " * 50, length=5) == ["[CLS]", "un", "##aff", "##able", "[SEP]"]
    assert ids("x" * 1000) == ["[CLS]", "[UNK]", "[SEP]"]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200), st.integers(2, 20), st.booleans())
def test_any_text_gives_indices_of_the_vocabulary(text: str, length: int, lower: bool) -> None:
    found = words.token_ids(text, VOCABULARY, length=length, lower=lower)
    assert 2 <= len(found) <= length
    assert (found[0], found[-1]) == (2, 3)
    assert all(0 <= index < len(LINES) for index in found)


def test_a_vocabulary_without_the_special_pieces_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"lacks \[PAD\], \[CLS\], \[SEP\]"):
        words.parse_vocabulary(b"a\n[UNK]\n")
    with pytest.raises(ManifestError, match="UTF-8"):
        words.parse_vocabulary(b"\xff")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match=r"not UTF-8.*byte 2"):
        words.decode_text(b"ab\xff", 10)
    with pytest.raises(DataError, match="11 bytes, the limit is 10"):
        words.decode_text(b"a" * 11, 10)
