"""The circuit breaker of one model in the cloud tier."""

from __future__ import annotations

import pytest

from device_agents.inference.cloud.breaker import (
    FAILURES_TO_OPEN,
    LONGEST_COOL_DOWN_SECONDS,
    Breaker,
    BreakerState,
    pace_of,
)
from device_agents.inference.cloud.failures import Failure


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker = breaker.failed(now, 0.0)
    return breaker


def test_the_breaker_opens_after_failures_in_a_row() -> None:
    """A success between failures starts the count anew."""
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker = breaker.failed(0.0, 0.0)
    assert breaker.admit(0.0)[1]
    assert breaker.succeeded() == Breaker()
    assert not breaker.failed(0.0, 0.0).admit(0.5)[1]


def test_one_probe_goes_after_each_cool_down() -> None:
    """Half open lets one call through and no second; its success closes."""
    breaker, allowed = opened().admit(1.0)
    assert allowed
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.admit(99.0)[1]
    assert breaker.succeeded().admit(1.0)[1]


def test_the_cool_down_doubles_up_to_its_cap() -> None:
    """Each failed probe waits twice as long, and never longer than the cap."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(8):
        waits.append(breaker.cool_down_seconds)
        assert not breaker.admit(now + breaker.cool_down_seconds - 0.01)[1]
        now += breaker.cool_down_seconds
        breaker, allowed = breaker.admit(now)
        assert allowed
        breaker = breaker.failed(now, 0.0)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert max(waits) == LONGEST_COOL_DOWN_SECONDS


def test_the_spread_shortens_the_wait_by_up_to_half() -> None:
    """Devices that failed together do not come back together."""
    half = Breaker(failures=FAILURES_TO_OPEN - 1).failed(10.0, 1.0)
    assert half.opens_at == pytest.approx(10.5)


def test_an_abandoned_probe_frees_the_next_one() -> None:
    """A caller that gave up neither opens nor blocks the breaker."""
    probing, _ = opened().admit(5.0)
    assert probing.abandoned(5.0).admit(5.0)[1]
    assert Breaker().abandoned(5.0) == Breaker()


def test_a_late_failure_of_an_open_breaker_does_not_lengthen_its_wait() -> None:
    """Calls that had begun before it opened are only counted."""
    assert opened().failed(0.5, 0.0).opens_at == opened().opens_at


def test_refusals_that_a_person_must_mend_open_it_at_once_and_for_long() -> None:
    """A wrong key or an unknown model is asked for again after 30 s, 60 s ... and at most every ten minutes."""
    for failure in (Failure.UNAUTHORIZED, Failure.NOT_FOUND):
        breaker, now, waits = Breaker(), 0.0, []
        for _ in range(7):
            breaker = breaker.failed(now, 0.0, pace_of(failure))
            waits.append(breaker.cool_down_seconds)
            now += breaker.cool_down_seconds
            breaker, allowed = breaker.admit(now)
            assert allowed
        assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_refused_requests_open_it_after_some_in_a_row() -> None:
    """A 400 may be about one request; three in a row are about all of them."""
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker = breaker.failed(0.0, 0.0, pace_of(Failure.REFUSED))
        assert breaker.admit(0.0)[1]
    assert breaker.failed(0.0, 0.0, pace_of(Failure.REFUSED)).opens_at == 30.0


def test_retry_after_is_honoured_with_a_spread_and_a_bound() -> None:
    """No call before the time that the tier named, up to half longer, and never longer than ten minutes and a half."""
    held = Breaker().held(0.0, 0.0, 7.0)
    assert not held.admit(6.9)[1]
    assert held.admit(7.0)[1]
    assert Breaker().held(0.0, 1.0, 7.0).opens_at == pytest.approx(10.5)
    assert Breaker().held(0.0, 0.0, 1e9).opens_at == 600.0
    assert held.held(1.0, 0.0, 0.0).opens_at == 7.0  # an answer that was on its way does not shorten the wait
