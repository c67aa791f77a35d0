"""Two controllers with two databases do not outbid each other for ever."""

from __future__ import annotations

from edgekit.identity.other_signer import AT_ONCE, FORGET_SECONDS, MAX_WAIT_SECONDS, OtherSigner


def test_a_restored_database_is_answered_at_once_and_another_signer_ever_later() -> None:
    """Each wait is twice the one before, up to an hour; other devices are not affected."""
    other, now, waits = OtherSigner(), 1000.0, []
    for number in range(1, 12):
        start = now
        while not other.may_answer("pi-1", now):
            now += 1.0
        waits.append(now - start)
        assert other.note("pi-1", now) == number
        assert other.may_answer("pi-2", now)
    assert waits[: AT_ONCE + 1] == [0.0] * (AT_ONCE + 1)
    assert waits[AT_ONCE + 1 :] == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]
    assert waits[-1] == MAX_WAIT_SECONDS


def test_a_quiet_time_or_a_clock_that_is_set_back_begins_anew() -> None:
    """A second restore months later is not the work of another controller."""
    other = OtherSigner()
    for _ in range(5):
        other.note("pi-1", 1000.0)
    assert not other.may_answer("pi-1", 1001.0)
    assert other.may_answer("pi-1", 999.0)
    assert other.note("pi-1", 1000.0 + FORGET_SECONDS) == 1
