"""The calls of one model at one endpoint: which of them the breaker listens to."""

from __future__ import annotations

import contextlib

import pytest

from device_agents.inference.cloud.endpoint_line import Call, EndpointLine
from device_agents.inference.cloud.failures import CloudOverloadedError, CloudTimeoutError, FallbackError
from edgekit.errors import CloudError


class Line:
    """A line with calls that begin and end at given times."""

    def __init__(self) -> None:
        self.line, self.now = EndpointLine("m", 2.0), 0.0
        self._under_way: dict[Call, contextlib.ExitStack] = {}

    def begin(self) -> Call:
        self.line.admit(2.0, self.now)
        stack = contextlib.ExitStack()
        call = stack.enter_context(self.line.calling(lambda: self.now))
        self._under_way[call] = stack
        return call

    def end(self, call: Call, error: CloudError | None = None, *, cancelled: bool = False) -> None:
        call.has_ended = not cancelled
        self._under_way.pop(call).close()
        if error is not None:
            self.line.failed(call, error, 2.0, self.now, 0.0)
        elif not cancelled:
            self.line.succeeded(call, 0.1)

    @property
    def is_open(self) -> bool:
        try:
            self.end(self.begin(), cancelled=True)
        except FallbackError:
            return True
        return False


def opened() -> tuple[Line, list[Call]]:
    """A line whose breaker three of six calls have opened for a second, and the other three."""
    line = Line()
    calls = [line.begin() for _ in range(6)]
    for call in calls[:3]:
        line.end(call, CloudTimeoutError("too late"))
    assert line.is_open
    return line, calls[3:]


@pytest.mark.parametrize("how", ["failed", "cancelled", "answered"])
def test_calls_that_began_before_the_breaker_opened_do_not_disturb_its_probe(how: str) -> None:
    """The probe alone decides: a late failure opened the breaker again, for twice as long."""
    line, late = opened()
    line.now = 1.0
    probe = line.begin()
    for call in late:
        line.end(call, CloudError("late") if how == "failed" else None, cancelled=how == "cancelled")
    assert line.is_open, "one probe at a time"
    line.end(probe)
    assert not line.is_open


def test_a_late_answer_does_not_end_a_wait_and_a_late_wish_prolongs_it() -> None:
    """The tier asked for it."""
    line = Line()
    calls = [line.begin() for _ in range(3)]
    line.end(calls[0], CloudOverloadedError("busy", retry_after_seconds=5.0))
    line.end(calls[1])
    assert line.is_open
    line.end(calls[2], CloudOverloadedError("busy", retry_after_seconds=9.0))
    line.now = 6.0
    assert line.is_open
    line.now = 9.0
    assert not line.is_open


def test_a_cancelled_probe_lets_the_next_one_begin() -> None:
    """Its caller has gone, which says nothing of the tier."""
    line, _ = opened()
    line.now = 1.0
    line.end(line.begin(), cancelled=True)
    line.end(line.begin())
    assert not line.is_open
