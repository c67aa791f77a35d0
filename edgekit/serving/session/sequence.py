"""The parameters of a request that belongs to a stream: Triton's sequence extension. Rules only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgekit.errors import DataError

ID, START, END = "sequence_id", "sequence_start", "sequence_end"
MAX_ID_LENGTH = 128  # of text, as in Triton
_MAX_ID = 2**64 - 1


class Sequence(NamedTuple):
    """A request's place in its stream.

    Attributes:
        id: The client's id of the stream: a number other than 0, or text. 7 and "7" are two streams.
        start: True for the first request: the state is zero before it.
        end: True for the last request: the state is dropped after it.
    """

    id: int | str
    start: bool = False
    end: bool = False


def parse_sequence(parameters: Mapping[str, Any]) -> Sequence | None:
    """The stream that a request's parameters name; None where they name none (no id, 0, or empty text).

    Raises:
        DataError: the id is neither a number from 0 to 2**64 - 1 nor text of up to MAX_ID_LENGTH characters, the
            start or the end is not true or false, or there is a start or an end but no id.
    """
    given = parameters.get(ID, 0)
    start, end = _flag(parameters, START), _flag(parameters, END)
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise DataError(f"{ID} is {given!r}, expected a number other than 0, or text")
    if isinstance(given, str) and len(given) > MAX_ID_LENGTH:
        raise DataError(f"{ID} has {len(given)} characters, the limit is {MAX_ID_LENGTH}")
    if isinstance(given, int) and not 0 <= given <= _MAX_ID:
        raise DataError(f"{ID} is {given}, expected 1 to {_MAX_ID}")
    if given:
        return Sequence(given, start, end)
    if start or end:
        raise DataError(f"{START if start else END} is true, but {ID} names no stream; send an id other than 0")
    return None


def parse_ignored_sequence(parameters: Mapping[str, Any]) -> Sequence | None:
    """As `parse_sequence`, for a model without state, which takes any parameters; None where they name no stream."""
    try:
        return parse_sequence(parameters)
    except DataError:
        return None


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise DataError(f"{name} is {value!r}, expected true or false")
    return value
