"""The download rate and the quiet hours."""

import time

import pytest

from device_agents.download.gate import Gate
from device_agents.download.throttle import Bucket, parse_quiet_hours
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import UnavailableError


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("08:00-18:30", (480, 1109), (479, 1110, 0)), ("22:00-06:30", (1320, 1439, 0, 389), (390, 1319))],
)
def test_quiet_hours_may_go_over_midnight(text, inside, outside):
    """The first minute is quiet and the last is not."""
    hours = parse_quiet_hours(text)
    assert all(minute in hours for minute in inside)
    assert not any(minute in hours for minute in outside)
    assert str(hours) == text


@pytest.mark.parametrize("text", ["8-18", "08:00", "24:00-01:00", "08:60-09:00", "08:00-08:00", " 08:00-09:00"])
def test_other_forms_are_refused(text):
    """And say what is expected."""
    with pytest.raises(ValueError, match="quiet hours"):
        parse_quiet_hours(text)


def test_no_text_is_no_quiet_hours():
    """The default."""
    assert parse_quiet_hours("") is None


@pytest.mark.parametrize("rate", [BLOCK_BYTES // 10, BLOCK_BYTES, 10 * BLOCK_BYTES])
def test_a_bucket_lets_its_rate_through_and_no_more(rate):
    """Asked as often as it says it may be, over 100 seconds; a burst of one second or one block on top."""
    now, bucket, asked = 0.0, Bucket.full(rate, 0.0), 0
    while now < 100.0:
        blocks = bucket.blocks(now, 16)
        assert 0 <= blocks <= 16
        bucket, asked = bucket.take(now, blocks), asked + blocks
        now += bucket.wait_seconds(now) + 1e-6
    assert 100 * rate - BLOCK_BYTES <= asked * BLOCK_BYTES <= 101 * rate + BLOCK_BYTES


def test_a_bucket_without_a_rate_lets_everything_through():
    """At once."""
    bucket = Bucket.full(0, 0.0)
    assert bucket.take(0.0, bucket.blocks(0.0, 1000)).blocks(0.0, 1000) == 1000
    assert bucket.wait_seconds(0.0) == 0.0


class Noon:
    """A clock at 12:00 in this machine's time zone."""

    def monotonic(self):
        return time.monotonic()

    def wall(self):
        return time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))


async def test_the_gate_is_closed_in_quiet_hours_and_slow_at_a_rate():
    """Without `wait` it says that nothing may be asked for; with it, it waits for one block."""
    with pytest.raises(UnavailableError, match="quiet hours, 11:00-13:00"):
        await Gate(Noon(), quiet=parse_quiet_hours("11:00-13:00")).pass_blocks(4, wait=True)
    gate = Gate(Noon(), bytes_per_second=50 * BLOCK_BYTES, quiet=parse_quiet_hours("13:00-11:00"))
    assert await gate.pass_blocks(60, wait=False) == 50
    assert await gate.pass_blocks(60, wait=False) == 0
    assert await gate.pass_blocks(60, wait=True) >= 1
