"""Rules of broadcasts: when one is worth it, which blocks it sends, which devices it serves, and its rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.mqtt.messages import MAX_BROADCAST_BLOCKS, Range
from edgekit.transfer.blocks import to_ranges
from edgekit.transfer.broadcast import FORGET_SECONDS, MIN_DEVICES, Broadcast, WaitingDevices, bits_of, bytes_per_second

TOTAL = 100
ALL = (1 << TOTAL) - 1


def waiting_for(*wants, now=0.0):
    waiting = WaitingDevices()
    for number, bits in enumerate(wants):
        waiting.add(f"d{number}", bits, now)
    return waiting


def drained(broadcast):
    runs = []
    while (run := broadcast.next_run()) is not None:
        runs.append(list(run))
    return runs


@given(st.sets(st.integers(0, TOTAL - 1)))
def test_ranges_and_bits_say_the_same(blocks):
    """Bits hold the blocks of the ranges; blocks outside the blob are left out."""
    bits = bits_of((*to_ranges(blocks), Range(-9, -1), Range(TOTAL, 1 << 60), Range(5, 2)), TOTAL)
    assert {at for at in range(TOTAL + 9) if bits >> at & 1} == blocks


@given(st.sets(st.integers(0, TOTAL - 1), min_size=1))
def test_a_wave_sends_exactly_what_is_missed_in_runs_of_neighbours(blocks):
    """No block is sent twice, and each message has as many consecutive blocks as it may."""
    runs = drained(Broadcast(TOTAL, bits_of(to_ranges(blocks), TOTAL), ()))
    assert sorted(index for run in runs for index in run) == sorted(blocks)
    assert all(run == list(range(run[0], run[-1] + 1)) and len(run) <= MAX_BROADCAST_BLOCKS for run in runs)


@pytest.mark.parametrize(
    ("wants", "worth"),
    [
        ((ALL,) * MIN_DEVICES, True),
        ((ALL,) * (MIN_DEVICES - 1), False),
        ((ALL, ALL, ALL, 1), True),
        (tuple(0b1111111111 << 10 * at for at in range(10)), False),  # each misses other blocks
        ((0b1111,) * 10, False),  # too few blocks
    ],
)
def test_a_wave_is_worth_it_where_most_miss_the_same(wants, worth):
    """At least half of the delivered blocks must be missing on the device that receives them."""
    assert waiting_for(*wants).worth_a_broadcast(1.0) is worth


def test_devices_that_left_or_fell_silent_do_not_count():
    """The devices that remain are too few for a broadcast."""
    waiting = waiting_for(*(ALL,) * MIN_DEVICES)
    waiting.remove("d0")
    assert not waiting.worth_a_broadcast(0.0)
    waiting = waiting_for(*(ALL,) * MIN_DEVICES)
    assert not waiting.worth_a_broadcast(FORGET_SECONDS)


def test_who_comes_late_listens_to_what_is_still_to_come():
    """A late device joins if most of its missing blocks are still to be sent; no block is sent again for it."""
    broadcast = Broadcast(TOTAL, ALL, ["a"])
    begun = [index for _ in range(10) for index in broadcast.next_run()]
    assert broadcast.join("b", ALL, sending=True)
    assert not broadcast.join("c", 0b1001, sending=True)
    assert broadcast.devices == {"a", "b"}
    assert begun + [index for run in drained(broadcast) for index in run] == [*range(TOTAL)]


def test_who_comes_before_the_first_block_is_sent_all_that_it_misses():
    """Before the first block, the broadcast adds the missing blocks of every device that joins."""
    broadcast = Broadcast(TOTAL, 0b1, ["a"])
    assert broadcast.join("b", 0b110, sending=False)
    assert drained(broadcast) == [[0, 1, 2]]


def test_the_pace_leaves_room_in_the_broker():
    """The rate falls with the number of devices, down to a lower limit."""
    assert bytes_per_second(16 * 2**20, 16) == 10 * 2**20
    assert bytes_per_second(16 * 2**20, 1500) < 2**17  # 1,500 devices at 256 KiB/s overran a broker on two cores
    assert bytes_per_second(16 * 2**20, 10**6) == 2**16
