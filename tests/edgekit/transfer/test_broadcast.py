"""The rules of waves: when one is worth it, and that it sends everything that is missed, and not for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.mqtt.messages import MAX_WAVE_BLOCKS, Range
from edgekit.transfer.blocks import to_ranges
from edgekit.transfer.broadcast import FORGET_SECONDS, MIN_DEVICES, Crowd, Wave, bits_of, bytes_per_second

TOTAL = 100
ALL = (1 << TOTAL) - 1


def crowd_of(*wants, now=0.0):
    crowd = Crowd()
    for number, bits in enumerate(wants):
        crowd.asked(f"d{number}", bits, now)
    return crowd


def drained(wave):
    runs = []
    while (run := wave.next_run()) is not None:
        runs.append(list(run))
    return runs


@given(st.sets(st.integers(0, TOTAL - 1)))
def test_ranges_and_bits_say_the_same(blocks):
    """And what lies outside the blob is left out."""
    bits = bits_of((*to_ranges(blocks), Range(-9, -1), Range(TOTAL, 1 << 60), Range(5, 2)), TOTAL)
    assert {at for at in range(TOTAL + 9) if bits >> at & 1} == blocks


@given(st.sets(st.integers(0, TOTAL - 1), min_size=1))
def test_a_wave_sends_exactly_what_is_missed_in_runs_of_neighbours(blocks):
    """Nothing twice, and as few messages as the runs allow."""
    runs = drained(Wave(TOTAL, bits_of(to_ranges(blocks), TOTAL), ()))
    assert sorted(index for run in runs for index in run) == sorted(blocks)
    assert all(run == list(range(run[0], run[-1] + 1)) and len(run) <= MAX_WAVE_BLOCKS for run in runs)


@pytest.mark.parametrize(
    ("wants", "worth"),
    [
        ((ALL,) * MIN_DEVICES, True),
        ((ALL,) * (MIN_DEVICES - 1), False),
        ((ALL, ALL, ALL, 1), True),
        (tuple(0b1111111111 << 10 * at for at in range(10)), False),  # each misses something else
        ((0b1111,) * 10, False),  # little: asked for as quickly
    ],
)
def test_a_wave_is_worth_it_where_most_miss_the_same(wants, worth):
    """What it sends to all must be of use to half of them."""
    assert crowd_of(*wants).worth_a_wave(1.0) is worth


def test_devices_that_left_or_fell_silent_do_not_count():
    """Those that remain are too few."""
    crowd = crowd_of(*(ALL,) * MIN_DEVICES)
    crowd.left("d0")
    assert not crowd.worth_a_wave(0.0)
    crowd = crowd_of(*(ALL,) * MIN_DEVICES)
    assert not crowd.worth_a_wave(FORGET_SECONDS)


def test_who_comes_late_listens_to_what_is_still_to_come():
    """And not where most of what it misses is over; nothing is sent again for it."""
    wave = Wave(TOTAL, ALL, ["a"])
    begun = [index for _ in range(10) for index in wave.next_run()]
    assert wave.join("b", ALL, sending=True)
    assert not wave.join("c", 0b1001, sending=True)
    assert wave.devices == {"a", "b"}
    assert begun + [index for run in drained(wave) for index in run] == [*range(TOTAL)]


def test_who_comes_before_the_first_block_is_sent_all_that_it_misses():
    """Gathering adds up what anybody misses."""
    wave = Wave(TOTAL, 0b1, ["a"])
    assert wave.join("b", 0b110, sending=False)
    assert drained(wave) == [[0, 1, 2]]


def test_the_pace_leaves_room_in_the_broker():
    """More devices, less for each; never so slow that a wave takes hours."""
    assert bytes_per_second(16 * 2**20, 16) == 10 * 2**20
    assert bytes_per_second(16 * 2**20, 10**6) == 2**18
