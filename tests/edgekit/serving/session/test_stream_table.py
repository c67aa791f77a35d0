"""Which streams are open: begins, ends, idle streams, the limit, and the reason that an ended stream's client gets."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.serving.session.queue import OverloadedError
from edgekit.serving.session.stream_table import MAX_ENDED, StreamEndedError, StreamLimits, StreamTable

ZERO = {"h": np.zeros(1)}
ONE = {"h": np.ones(1)}


def table(streams: int = 2, idle_seconds: float = 60.0) -> StreamTable:
    return StreamTable("ear", StreamLimits(streams, idle_seconds))


def test_a_stream_has_the_state_of_its_last_request_until_it_ends() -> None:
    """Ids are separate streams, 7 and "7" too; after the end the id must be begun again."""
    streams = table()
    streams.start(7, ZERO, 0.0)
    streams.keep(7, ONE, 0.0)
    streams.start("7", ZERO, 0.0)
    assert streams.state(7) is ONE
    assert streams.state("7") is ZERO
    assert streams.start(7, ZERO, 1.0) is ZERO  # begun again although it is open
    streams.end(7)
    assert len(streams) == 1
    with pytest.raises(DataError, match="stream 7 of model ear is not open: its first request must have"):
        streams.state(7)


def test_an_idle_stream_ends_and_its_client_gets_the_reason() -> None:
    """A stream with a waiting request does not end; a new begin clears the reason."""
    streams = table()
    streams.start("a", ZERO, 0.0)
    streams.start("b", ZERO, 50.0)
    assert streams.end_idle(59.0, ()) == pytest.approx(1.0)
    streams.end_idle(60.0, {"a"})
    assert len(streams) == 2
    assert streams.end_idle(60.0, ()) == pytest.approx(50.0)
    with pytest.raises(StreamEndedError, match="stream 'a' of model ear has ended: it had no request for 60 s"):
        streams.state("a")
    streams.start("a", ZERO, 61.0)
    assert streams.state("a") is ZERO
    assert streams.end_idle(500.0, ()) is None


def test_one_stream_too_many_is_refused_with_the_time_to_wait() -> None:
    """The time is that until the longest idle stream ends; open streams can still be begun again."""
    streams = table()
    streams.start(1, ZERO, 0.0)
    streams.start(2, ZERO, 20.0)
    streams.start(1, ZERO, 10.0)
    with pytest.raises(OverloadedError, match="model ear has 2 open streams, which is its limit") as caught:
        streams.start(3, ZERO, 30.0)
    assert caught.value.retry_after_seconds == 40
    assert "max_streams" in caught.value.advice


def test_a_new_bundle_takes_over_why_streams_ended() -> None:
    """Streams of two bundles ago are still known; the number of kept reasons is bounded."""
    first, second, third = table(), table(), table()
    first.start(1, ZERO, 0.0)
    second.follow(first, (2,), "the model was switched")
    third.follow(second, (), "the model was switched again")
    for key in (1, 2):
        with pytest.raises(StreamEndedError, match="the model was switched;"):
            third.state(key)
    for key in range(10, 10 + MAX_ENDED):
        third.note_ended(key, "test")
    with pytest.raises(DataError, match="is not open"):
        third.state(1)
