"""Rules for broadcasts: when a broadcast of a blob is cheaper than single answers, and which blocks it sends next.

Rules only. A broadcast sends each block once to all devices that listen. Devices request lost blocks afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgekit.mqtt.messages import MAX_BROADCAST_BLOCKS, Range

MIN_DEVICES = 4  # fewer devices get single answers
MIN_BLOCKS = 16  # fewer blocks are sent in single answers
MIN_SHARE = 0.5  # the least share of the delivered blocks that the receiving devices must miss
LATE_SHARE = 0.25  # a device that misses a smaller share of a blob requests its blocks instead of joining
REMAINING_SHARE = 0.5  # a late device joins only if at least this share of its missing blocks is still to be sent
FORGET_SECONDS = 20.0  # a device without a request for this long is forgotten
GATHER_SECONDS = 1.0  # the longest time from the decision to broadcast until the first block, in which devices join
GATHER_PARTS = 4  # the gathering ends early when no device has joined for this part of it
STALL_SECONDS = 0.1  # if all devices stop reading for this long, the broker must be able to hold what is sent
MIN_BYTES_PER_SECOND = 64 * 1024  # to each device: more would be too much for the broker with thousands of them
MAX_DEVICES = 20_000  # remembered for one blob


def bits_of(ranges: Iterable[Range], total: int) -> int:
    """A number in which bit i is set if block i is in `ranges`; blocks outside the blob's `total` are left out."""
    bits = 0
    for blocks in ranges:
        first, last = max(0, blocks.first), min(total - 1, blocks.last)
        if first <= last:
            bits |= ((1 << (last - first + 1)) - 1) << first
    return bits


class WaitingDevices:
    """Devices that recently requested one blob, with the blocks that each of them misses."""

    def __init__(self) -> None:
        self._missing: dict[str, tuple[int, float]] = {}  # missing blocks and time of the last request, by device

    def add(self, device: str, bits: int, now: float) -> None:
        """Record the blocks that a device misses."""
        if device in self._missing or len(self._missing) < MAX_DEVICES:
            self._missing[device] = (bits, now)

    def remove(self, device: str) -> None:
        """Forget a device, because it misses no more blocks."""
        self._missing.pop(device, None)

    def remove_silent(self, now: float) -> bool:
        """Forget devices without a request for FORGET_SECONDS; False if no device is left."""
        self._missing = {
            device: (bits, at) for device, (bits, at) in self._missing.items() if now - at < FORGET_SECONDS
        }
        return bool(self._missing)

    def worth_a_broadcast(self, now: float) -> bool:
        """True if a broadcast of all missing blocks reaches mostly devices that miss them."""
        if len(self._missing) < MIN_DEVICES or not self.remove_silent(now) or len(self._missing) < MIN_DEVICES:
            return False
        union = self.union.bit_count()
        useful = sum(bits.bit_count() for bits, _ in self._missing.values())
        return union >= MIN_BLOCKS and useful >= MIN_SHARE * union * len(self._missing)

    @property
    def union(self) -> int:
        """The blocks that at least one device misses, as bits."""
        union = 0
        for bits, _ in self._missing.values():
            union |= bits
        return union

    @property
    def devices(self) -> set[str]:
        """Names of the devices."""
        return set(self._missing)


class Broadcast:
    """One broadcast: it sends each block once, in order.

    A device that lost blocks, or joined late, requests the rest after the broadcast. No block is sent twice, because
    every repetition would reach all devices that listen, and few of them miss it.

    Args:
        total: Number of blocks of the blob.
        bits: The blocks to send, as bits.
        devices: Names of the devices that listen.

    Attributes:
        sent: Number of blocks sent so far.
    """

    def __init__(self, total: int, bits: int, devices: Iterable[str]) -> None:
        self.total = total
        self.devices = set(devices)
        self.sent = 0
        self._pending = bits

    def join(self, device: str, bits: int, *, sending: bool) -> bool:
        """Let a device listen.

        Args:
            device: Name of the device.
            bits: The blocks that it misses, as bits.
            sending: True if the broadcast has begun, so that some blocks were already sent.

        Returns:
            False if the broadcast still sends too few of its missing blocks, so that it should request them.
        """
        if not sending:
            self._pending |= bits
        elif (bits & self._pending).bit_count() < REMAINING_SHARE * bits.bit_count():
            return False
        self.devices.add(device)
        return True

    def next_run(self, most: int = MAX_BROADCAST_BLOCKS) -> Iterator[int] | None:
        """Indexes of at most `most` consecutive blocks for the next message; None if every block was sent."""
        if not self._pending:
            return None
        first = (self._pending & -self._pending).bit_length() - 1
        count = 0
        while count < most and self._pending >> (first + count) & 1:
            count += 1
        self._pending &= ~(((1 << count) - 1) << first)
        self.sent += count
        return iter(range(first, first + count))


def bytes_per_second(budget_bytes: int, devices: int) -> float:
    """The rate of a broadcast at which the broker queues at most `budget_bytes` if no device reads for STALL_SECONDS.

    It is at least MIN_BYTES_PER_SECOND.
    """
    return max(MIN_BYTES_PER_SECOND, budget_bytes / (max(1, devices) * STALL_SECONDS))
