"""Wire messages: MessagePack maps that ignore unknown keys and refuse malformed bytes."""

from __future__ import annotations

import inspect

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import DataError
from edgekit.mqtt import messages
from edgekit.mqtt.messages import Answer, BlocksRequest, Presence, Range, Reported, Running, decode, encode

KINDS = [
    kind
    for _, kind in inspect.getmembers(messages, inspect.isclass)
    if issubclass(kind, msgspec.Struct) and kind.__module__ == messages.__name__ and kind is not Range
]


def check(payload: bytes, kind: type[msgspec.Struct]) -> None:
    """Decoding gives a message of `kind`, or a DataError that names it; any other exception fails the test."""
    try:
        found = decode(payload, kind)
    except DataError as error:
        found, text = None, str(error)
    assert isinstance(found, kind) or kind.__name__ in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(payload=st.binary(max_size=200))
def test_garbage_is_a_data_error_or_a_message(kind: type[msgspec.Struct], payload: bytes) -> None:
    """Decoding any bytes gives a message or a DataError; other errors fail the test."""
    check(payload, kind)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # drawing is slow on a busy machine
@given(data=st.data())
def test_a_map_with_wrong_values_is_a_data_error_or_a_message(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    """The right keys with values of any type give a message or a DataError too."""
    wrong = {name: data.draw(values, label=name) for name in kind.__struct_fields__}
    check(msgspec.msgpack.encode(wrong), kind)


def test_hints_with_a_time_to_reconnect_are_read_by_older_agents_and_their_absence_by_newer_ones() -> None:
    """An agent that does not know the field reads the others; hints of an older controller have no time."""

    class OldHints(msgspec.Struct, frozen=True):
        spread_seconds: float = 0.0
        paused: bool = False

    new = messages.FleetHints(spread_seconds=3.0, paused=True, reconnect_seconds=16.0)
    assert decode(encode(new), OldHints) == OldHints(3.0, True)
    assert decode(encode(OldHints(3.0, True)), messages.FleetHints) == messages.FleetHints(3.0, True, 0.0)


def test_a_deeply_nested_payload_is_a_data_error() -> None:
    """100,000 nested arrays do not exhaust the stack."""
    with pytest.raises(DataError):
        decode(b"\x91" * 100_000, messages.Event)
    facts = b"\x81\xa5facts" + b"\x81\xa1a" * 80_000
    with pytest.raises(DataError):
        decode(facts, Reported)


def test_a_payload_over_the_limit_is_not_even_parsed() -> None:
    """The size is checked first, and both sizes are shown."""
    with pytest.raises(DataError, match="262145 bytes is larger than the limit of 262144"):
        decode(bytes(256 * 1024 + 1), Presence)


def test_unknown_keys_are_ignored_and_missing_ones_are_not() -> None:
    """A newer sender may add keys; a required one must be there."""
    assert decode(msgspec.msgpack.encode({"online": True, "session": 3, "new": [1]}), Presence) == Presence(True, 3)
    with pytest.raises(DataError, match="session"):
        decode(msgspec.msgpack.encode({"online": True}), Presence)


def test_messages_are_maps_on_the_wire() -> None:
    """Messages are maps with keys, for other languages; only ranges of blocks are pairs."""
    request = BlocksRequest("r1", "ab", (Range(0, 3), Range(7, 7)), 4)
    assert msgspec.msgpack.decode(encode(request)) == {
        "id": "r1",
        "digest": "ab",
        "ranges": [[0, 3], [7, 7]],
        "credit": 4,
        "left": -1,
        "missing": [],
        "urls": False,
        "part_bytes": 0,
    }


def test_what_is_encoded_decodes_to_itself() -> None:
    """Bytes, nested values and defaults survive."""
    answer = Answer("r1", 3, 9, bytes(range(256)))
    assert decode(encode(answer), Answer) == answer
    reported = Reported("d", "f", 2, 1.5, 0, {"m": Running("ab", "1.0.0")}, {}, {"cpu": ["asimd"], "memory_mib": 512})
    assert decode(encode(reported), Reported) == reported


def test_a_block_answer_fits_the_limit_with_room_to_spare() -> None:
    """A message of three 64 KiB blocks' bytes stays under the limit of a payload."""
    assert len(encode(Answer("x" * 64, 2**31, 2**31, bytes(3 * 64 * 1024)))) < messages.MAX_PAYLOAD_BYTES
