"""An MQTT broker in memory with Transports: retained messages, wills, shared subscriptions, outages and losses.

    broker = MemoryBroker()
    device, controller = MemoryTransport(broker, "d1"), MemoryTransport(broker, "controller")
    await connect(device, controller)

`publish` returns before the handlers run, as over a network, and `await settle()` waits until all messages in flight
have arrived. Losses are repeatable: they depend on `seed` and not on time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Iterable

from paho.mqtt.client import topic_matches_sub

from edgekit.errors import PacketTooLargeError, TransportError
from edgekit.mqtt.limits import too_large
from edgekit.mqtt.messages import MAX_PAYLOAD_BYTES
from edgekit.protocols import Handler, Message, Will

log = logging.getLogger(__name__)

Tap = Callable[[str, Message], Iterable[Message]]


class MemoryBroker:
    """A broker in memory.

    Attributes:
        drop: Share of QoS 0 deliveries that are lost.
        duplicate: Share of deliveries that arrive twice.
        reorder: Share of deliveries that later ones overtake.
        tap: Called as `tap(client_id, message)` for each delivery; the returned messages are delivered instead. An
            empty list loses the message at any QoS, two items repeat it, other bytes tamper with it.
        retained: Payload by topic.
        published: Every message that clients and wills published, in order.
        packet_limit: The largest payload that it accepts, in bytes; 0 for no limit.
        up: False between `stop` and `start`.
    """

    def __init__(self, *, drop: float = 0.0, duplicate: float = 0.0, reorder: float = 0.0, seed: int = 0) -> None:
        self.drop = drop
        self.duplicate = duplicate
        self.reorder = reorder
        self.tap: Tap | None = None
        self.retained: dict[str, bytes] = {}
        self.published: list[Message] = []
        self.up = True
        self.packet_limit = 0
        self._random = random.Random(seed)
        self._clients: dict[str, MemoryTransport] = {}
        self._held: set[str] = set()
        self._waiting: list[MemoryTransport] = []
        self._turns = itertools.count()

    def stop(self) -> None:
        """Stop the broker: every client loses its connection, and no will is published. Retained messages stay."""
        self.up = False
        for client in list(self._clients.values()):
            self._lose(client, will=False)

    def start(self) -> None:
        """Start the broker again: every lost client reconnects."""
        self.up = True
        self._wake()

    def cut(self, client_id: str, *, hold: bool = False) -> None:
        """Break one client's connection: its will is published, and it reconnects.

        With `hold` it stays away until `restore`.
        """
        if hold:
            self._held.add(client_id)
        if client_id in self._clients:
            self._lose(self._clients[client_id], will=True)
        self._wake()

    def restore(self, client_id: str) -> None:
        """Let a client reconnect that `cut` keeps away."""
        self._held.discard(client_id)
        self._wake()

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Publish as a client would, for tests without a second transport."""
        self.published.append(Message(topic, payload, retain))
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        groups: dict[tuple[str, str], list[MemoryTransport]] = {}
        for client in list(self._clients.values()):
            for topic_filter, (_, wanted, group) in list(client.routes.items()):
                if not topic_matches_sub(topic_filter, topic):
                    continue
                if group:
                    groups.setdefault((group, topic_filter), []).append(client)
                else:
                    self._send(client, topic_filter, Message(topic, payload), min(qos, wanted))
        for (_, topic_filter), members in groups.items():
            chosen = members[next(self._turns) % len(members)]
            self._send(chosen, topic_filter, Message(topic, payload), min(qos, chosen.routes[topic_filter][1]))

    def replay(self, client: MemoryTransport, topic_filter: str) -> None:
        """Send the retained messages that match a filter of `client`."""
        _, wanted, group = client.routes[topic_filter]
        for topic, payload in list(self.retained.items()) if not group else ():
            if topic_matches_sub(topic_filter, topic):
                self._send(client, topic_filter, Message(topic, payload, True), wanted)

    def attach(self, client: MemoryTransport) -> None:
        """Connect `client` when the broker is up and does not keep it away."""
        self._waiting.append(client)
        self._wake()

    def detach(self, client: MemoryTransport) -> None:
        """Disconnect cleanly, without a will."""
        if client in self._waiting:
            self._waiting.remove(client)
        if self._clients.get(client.client_id) is client:
            del self._clients[client.client_id]

    def _wake(self) -> None:
        for client in list(self._waiting):
            if self.up and client.client_id not in self._held:
                self._waiting.remove(client)
                asyncio.get_running_loop().call_soon(self._accept, client)

    def _accept(self, client: MemoryTransport) -> None:
        if not client.started:
            return
        if not self.up or client.client_id in self._held:
            self._waiting.append(client)
            return
        older = self._clients.get(client.client_id)
        if older is not None and older is not client:
            older.takeovers += 1
            self._lose(older, will=True)
        self._clients[client.client_id] = client
        for topic_filter in list(client.routes):
            self.replay(client, topic_filter)
        asyncio.get_running_loop().call_soon(client.set_connected, True)

    def _lose(self, client: MemoryTransport, *, will: bool) -> None:
        del self._clients[client.client_id]
        client.set_connected(False)
        self._waiting.append(client)
        if will and client.will:
            self.publish(client.will.topic, client.will.payload, qos=1, retain=client.will.retain)

    def _send(self, client: MemoryTransport, topic_filter: str, message: Message, qos: int) -> None:
        copies = list(self.tap(client.client_id, message)) if self.tap else [message]
        for copy in copies:
            if qos == 0 and self._random.random() < self.drop:
                continue
            for _ in range(2 if self._random.random() < self.duplicate else 1):
                hops = self._random.randint(2, 9) if self._random.random() < self.reorder else 1
                self._hop(client, topic_filter, copy, hops)

    def _hop(self, client: MemoryTransport, topic_filter: str, message: Message, hops: int) -> None:
        loop = asyncio.get_running_loop()
        if hops:
            loop.call_soon(self._hop, client, topic_filter, message, hops - 1)
        elif self._clients.get(client.client_id) is client:
            client.deliver(topic_filter, message)


class MemoryTransport:
    """A Transport on a MemoryBroker.

    Attributes:
        routes: (handler, QoS, group) by topic filter.
        handler_errors: Number of handlers and listeners that raised.
        started: True between `start` and `stop`.
        takeovers: As the protocol says.
        reconnect_seconds: What `spread_reconnects` was given last.
    """

    def __init__(self, broker: MemoryBroker, client_id: str, *, will: Will | None = None) -> None:
        self.client_id = client_id
        self.will = will
        self.routes: dict[str, tuple[Handler, int, str]] = {}
        self.handler_errors = 0
        self.takeovers = 0
        self.reconnect_seconds = 0.0
        self.started = False
        self._broker = broker
        self._connected = asyncio.Event()
        self._listeners: list[Callable[[bool], None]] = []

    @property
    def connected(self) -> bool:
        """As the protocol says."""
        return self._connected.is_set()

    @property
    def shares(self) -> bool:
        """True while connected."""
        return self.connected

    @property
    def packet_limit(self) -> int:
        """As the protocol says."""
        return self._broker.packet_limit if self.connected else 0

    async def start(self) -> None:
        """As the protocol says."""
        if not self.started:
            self.started = True
            self._broker.attach(self)

    async def wait_connected(self, timeout_seconds: float) -> None:
        """As the protocol says."""
        try:
            await asyncio.wait_for(self._connected.wait(), timeout_seconds)
        except asyncio.TimeoutError:
            raise TransportError(f"cannot reach broker memory://{self.client_id}: it is not connected") from None

    async def stop(self) -> None:
        """As the protocol says."""
        if self.started:
            self.started = False
            self._broker.detach(self)
            self.set_connected(False)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expiry_seconds: int | None = None
    ) -> None:
        """As the protocol says."""
        if not topic or "+" in topic or "#" in topic:
            raise ValueError(f"{topic!r} is not a topic to publish on")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PacketTooLargeError(f"payload is {len(payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}")
        if not self.connected:
            raise TransportError("not connected to the broker")
        if self.packet_limit and len(payload) > self.packet_limit:
            raise PacketTooLargeError(too_large(len(payload), self.packet_limit))
        self._broker.publish(topic, bytes(payload), qos=qos, retain=retain)
        await asyncio.sleep(0)

    async def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1, group: str = "") -> None:
        """As the protocol says."""
        self.routes[topic_filter] = (handler, qos, group)
        if self.connected:
            self._broker.replay(self, topic_filter)
            await asyncio.sleep(0)

    async def unsubscribe(self, topic_filter: str) -> None:
        """As the protocol says."""
        self.routes.pop(topic_filter, None)

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """As the protocol says."""
        self._listeners.append(listener)

    def spread_reconnects(self, seconds: float) -> None:
        """Note the time; the broker in memory says when its clients come back."""
        self.reconnect_seconds = seconds

    def set_connected(self, connected: bool) -> None:
        """Called by the broker when the connection was made or lost."""
        if connected == self.connected or (connected and not self.started):
            return
        if connected:
            self._connected.set()
        else:
            self._connected.clear()
        for listener in self._listeners:
            self._guard(listener, connected)

    def deliver(self, topic_filter: str, message: Message) -> None:
        """Called by the broker with a message."""
        if topic_filter in self.routes:
            self._guard(self.routes[topic_filter][0], message)

    def _guard(self, function: Callable[..., None], argument: object) -> None:
        try:
            function(argument)
        except Exception:  # supervision boundary: a handler cannot kill the connection
            self.handler_errors += 1
            log.exception("a handler of %s raised", self.client_id)


async def connect(*transports: MemoryTransport) -> None:
    """Start transports and wait until each is connected."""
    for transport in transports:
        await transport.start()
    for transport in transports:
        await transport.wait_connected(5.0)


async def settle(turns: int = 50) -> None:
    """Wait until all messages in flight, and those that their handlers send, have arrived."""
    for _ in range(turns):
        await asyncio.sleep(0)
