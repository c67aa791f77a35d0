"""The hint service: sends all devices the fleet's pause and its time to reconnect, in a retained message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.mqtt import topics
from edgekit.mqtt.messages import FleetHints, encode
from edgekit.mqtt.reconnecting import reconnect_seconds
from edgekit.protocols import Transport

if TYPE_CHECKING:
    from edgekit.state import FleetPause


class HintService:
    """Publishes the fleet's hints when they change, and after each connection to the broker.

    Args:
        fleet, transport: As Controller.
    """

    def __init__(self, *, fleet: str, transport: Transport) -> None:
        self._topic = topics.fleet_hints(fleet)
        self._transport = transport
        self._published: FleetHints | None = None

    def connection_changed(self, connected: bool) -> None:
        """Publish again after a reconnect, because the broker may have lost its retained messages."""
        self._published = None

    async def publish(self, pause: FleetPause, devices: int) -> None:
        """Publish the hints if the broker does not have them.

        Args:
            pause: Whether the fleet is paused.
            devices: Number of enrolled devices.

        Raises:
            TransportError: the broker cannot be reached; the next call repeats the work.
        """
        hints = FleetHints(paused=pause.paused, reconnect_seconds=reconnect_seconds(devices))
        if hints == self._published:
            return
        await self._transport.publish(self._topic, encode(hints), qos=1, retain=True)
        self._published = hints
