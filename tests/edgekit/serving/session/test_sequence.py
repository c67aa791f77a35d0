"""The parameters of a stream's request, with the names and types of Triton's sequence extension."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import DataError
from edgekit.serving.session.sequence import Sequence, parse_sequence


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({}, None),
        ({"sequence_id": 0}, None),
        ({"sequence_id": "", "sequence_start": False}, None),
        ({"sequence_id": 7, "sequence_start": True}, Sequence(7, start=True)),
        ({"sequence_id": "mic", "sequence_end": True}, Sequence("mic", end=True)),
        ({"sequence_id": 2**64 - 1, "sequence_start": True, "sequence_end": True}, Sequence(2**64 - 1, True, True)),
    ],
)
def test_a_stream_is_read_from_the_parameters(parameters: dict[str, Any], place: Sequence | None) -> None:
    """An id of 0 or empty text names no stream."""
    assert parse_sequence(parameters) == place


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"sequence_id": 1.5}, "sequence_id is 1.5, expected a number other than 0, or text"),
        ({"sequence_id": True}, "sequence_id is True"),
        ({"sequence_id": None}, "sequence_id is None"),
        ({"sequence_id": -1}, "sequence_id is -1, expected 1 to"),
        ({"sequence_id": 2**64}, "expected 1 to"),
        ({"sequence_id": "a" * 129}, "sequence_id has 129 characters, the limit is 128"),
        ({"sequence_id": 7, "sequence_start": 1}, "sequence_start is 1, expected true or false"),
        ({"sequence_id": 7, "sequence_end": "yes"}, "sequence_end is 'yes', expected true or false"),
        ({"sequence_start": True}, "sequence_start is true, but sequence_id names no stream"),
        ({"sequence_id": 0, "sequence_end": True}, "sequence_end is true, but sequence_id names no stream"),
    ],
)
def test_malformed_parameters_are_refused(parameters: dict[str, Any], says: str) -> None:
    """The message has the value and what was expected."""
    with pytest.raises(DataError) as caught:
        parse_sequence(parameters)
    assert says in str(caught.value)
