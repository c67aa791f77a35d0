"""Telemetry: the increase of counters, and sketches of values, since the last message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec

from device_agents.control.link import ControlLink
from edgekit.errors import PacketTooLargeError, TransportError
from edgekit.mqtt.messages import Telemetry
from edgekit.protocols import Clock
from edgekit.sketches.signals import MAX_SKETCHES
from edgekit.sketches.sketch import Sketch

log = logging.getLogger(__name__)

MAX_WAITING = 256  # sketches: of a device with so many models that one message has no room for all


class Window:
    """Computes the increase of rising totals since the last message that was sent.

    Args:
        device: Name of the device.
        now: Monotonic seconds at the beginning.
    """

    def __init__(self, device: str, now: float) -> None:
        self._device = device
        self._since = now
        self._totals: dict[str, float] = {}

    def peek(self, totals: Mapping[str, float], *, now: float, at: float) -> Telemetry:
        """The message for the present window.

        Args:
            totals: Present totals. A total that is lower than before has restarted from 0.
            now: Monotonic seconds.
            at: Wall clock seconds.
        """
        added = {name: total - self._before(name, total) for name, total in totals.items()}
        return Telemetry(self._device, at, now - self._since, added)

    def sent(self, totals: Mapping[str, float], *, now: float) -> None:
        """Begin the next window; the message of `peek` has been sent."""
        self._totals, self._since = dict(totals), now

    def _before(self, name: str, total: float) -> float:
        before = self._totals.get(name, 0.0)
        return before if total >= before else 0.0


class TelemetrySender:
    """Sends the increase of the counters, and the sketches, at an interval.

    Args:
        device: Name of the device.
        session: Number of this run of the agent.
        link: Sends the messages.
        counters: Gives the present totals.
        take_sketches: Gives the sketches since the last call.
        clock: Time.
    """

    def __init__(
        self,
        device: str,
        *,
        session: int,
        link: ControlLink,
        counters: Callable[[], dict[str, float]],
        take_sketches: Callable[[], dict[str, Sketch]],
        clock: Clock,
    ) -> None:
        self._device, self._session, self._link = device, session, link
        self._counters, self._take_sketches, self._clock = counters, take_sketches, clock

    async def run(self, seconds: float) -> None:
        """Send every `seconds` until cancelled. A message that cannot be sent becomes part of the next one."""
        window, number, sketches = Window(self._device, self._clock.monotonic()), 0, dict[str, Sketch]()
        while True:
            await asyncio.sleep(seconds)
            totals, now = self._counters(), self._clock.monotonic()
            sketches = joined(sketches, self._take_sketches())
            number += 1
            message = window.peek(totals, now=now, at=self._clock.wall())
            sent, later = split_sketches(sketches)
            message = msgspec.structs.replace(message, sketches=sent, session=self._session, number=number)
            try:
                await self._link.telemetry(message)
                window.sent(totals, now=now)
                sketches = later
            except PacketTooLargeError as error:  # a longer window would not be smaller
                log.error("telemetry is dropped: %s", error)
                window.sent(totals, now=now)
                sketches = later
            except TransportError as error:
                log.debug("telemetry waits: %s", error)


def joined(waiting: Mapping[str, Sketch], taken: Mapping[str, Sketch]) -> dict[str, Sketch]:
    """Sketches that were not sent, and new ones after them; of more than MAX_WAITING, the oldest are dropped."""
    both = {
        key: sketch.merged(waiting[key]) if key in waiting and key in taken else sketch
        for key, sketch in {**waiting, **taken}.items()
    }
    return dict(list(both.items())[-MAX_WAITING:])


def split_sketches(sketches: Mapping[str, Sketch]) -> tuple[dict[str, Sketch], dict[str, Sketch]]:
    """The sketches of one message, those that wait longest, and the others, which come with the next message."""
    items = list(sketches.items())
    return dict(items[:MAX_SKETCHES]), dict(items[MAX_SKETCHES:])


def flatten(counters: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """``{"digits": {"local": 3}}`` as ``{"digits.local": 3.0}``."""
    return {f"{model}.{name}": float(value) for model, one in counters.items() for name, value in one.items()}
