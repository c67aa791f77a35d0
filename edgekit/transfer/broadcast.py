"""Waves in step: when one broadcast of a blob's blocks is cheaper than answering everybody, and what it sends next.

Rules only. A wave sends each block once to everybody who listens; what somebody loses is asked for afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgekit.mqtt.messages import MAX_WAVE_BLOCKS, Range

MIN_DEVICES = 4  # fewer are answered one by one
MIN_BLOCKS = 16
MIN_SHARE = 0.5  # of what a wave sends to its devices, so much must be of use to them
LATE_SHARE = 0.25  # of a blob: who misses less of it asks for it
COMING_SHARE = 0.5  # of what a latecomer misses: where less is still to come, it asks
FORGET_SECONDS = 20.0  # a device that has not asked for so long does not count
GATHER_SECONDS = 1.0
STALL_SECONDS = 0.1
LEAST_BYTES_PER_SECOND = 256 * 1024
MAX_DEVICES = 20_000


def bits_of(ranges: Iterable[Range], total: int) -> int:
    """Blocks as the bits of a number; what lies outside the blob's `total` blocks is left out."""
    bits = 0
    for wanted in ranges:
        first, last = max(0, wanted.first), min(total - 1, wanted.last)
        if first <= last:
            bits |= ((1 << (last - first + 1)) - 1) << first
    return bits


class Crowd:
    """Who misses which blocks of one blob, as far as they said so lately."""

    def __init__(self) -> None:
        self._wants: dict[str, tuple[int, float]] = {}

    def asked(self, device: str, bits: int, now: float) -> None:
        """A device says what it misses."""
        if device in self._wants or len(self._wants) < MAX_DEVICES:
            self._wants[device] = (bits, now)

    def left(self, device: str) -> None:
        """A device has all that it wanted."""
        self._wants.pop(device, None)

    def sweep(self, now: float) -> bool:
        """Forget who fell silent; False when nobody is left."""
        self._wants = {device: (bits, at) for device, (bits, at) in self._wants.items() if now - at < FORGET_SECONDS}
        return bool(self._wants)

    def worth_a_wave(self, now: float) -> bool:
        """True when a broadcast of all that they miss sends little to devices that have it."""
        if len(self._wants) < MIN_DEVICES or not self.sweep(now) or len(self._wants) < MIN_DEVICES:
            return False
        union = self.union.bit_count()
        wanted = sum(bits.bit_count() for bits, _ in self._wants.values())
        return union >= MIN_BLOCKS and wanted >= MIN_SHARE * union * len(self._wants)

    @property
    def union(self) -> int:
        """What at least one of them misses."""
        union = 0
        for bits, _ in self._wants.values():
            union |= bits
        return union

    @property
    def devices(self) -> set[str]:
        """Who they are."""
        return set(self._wants)


class Wave:
    """One broadcast: each block once, in order.

    Whoever lost some, or came late, asks for the rest when it is over; sending that again would reach all the others
    who still listen for a block or two.

    Args:
        total: Blocks of the blob.
        bits: What to send.
        devices: Who listens.

    Attributes:
        sent: Blocks so far.
    """

    def __init__(self, total: int, bits: int, devices: Iterable[str]) -> None:
        self.total = total
        self.devices = set(devices)
        self.sent = 0
        self._pending = bits

    def join(self, device: str, bits: int, *, sending: bool) -> bool:
        """Let a device listen; False where too little of what it misses is still to come.

        Args:
            device: Its name.
            bits: What it misses.
            sending: The wave has begun, so that a part of it is over.
        """
        if not sending:
            self._pending |= bits
        elif (bits & self._pending).bit_count() < COMING_SHARE * bits.bit_count():
            return False
        self.devices.add(device)
        return True

    def next_run(self) -> Iterator[int] | None:
        """Consecutive blocks for one message; None when everything was sent."""
        if not self._pending:
            return None
        first = (self._pending & -self._pending).bit_length() - 1
        count = 0
        while count < MAX_WAVE_BLOCKS and self._pending >> (first + count) & 1:
            count += 1
        self._pending &= ~(((1 << count) - 1) << first)
        self.sent += count
        return iter(range(first, first + count))


def bytes_per_second(budget_bytes: int, devices: int) -> float:
    """The pace of a wave: if no device read for STALL_SECONDS, the broker would hold `budget_bytes`."""
    return max(LEAST_BYTES_PER_SECOND, budget_bytes / (max(1, devices) * STALL_SECONDS))
