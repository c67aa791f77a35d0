"""Transport on paho-mqtt: MQTT 5 where the broker speaks it, else 3.1.1, with automatic reconnects.

Sessions are clean and every subscription is repeated on each connect, so nothing depends on a broker's stored sessions.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from paho.mqtt.client import MQTTMessage
from paho.mqtt.matcher import MQTTMatcher

from edgekit.clock import SystemClock
from edgekit.errors import PacketTooLargeError, TransportError
from edgekit.mqtt.address import parse_url, tls_context
from edgekit.mqtt.link import FILTERS_PER_SUBSCRIBE, Link, LinkTarget, ProtocolRefusedError
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.silences import SAME_SILENCES, idle_timeout
from edgekit.protocols import Clock, Handler, Message, Will
from edgekit.waiting import within

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
WITHOUT_TLS = "Check the address and that the broker runs; `edgekit broker run` starts one on this machine."
WITH_CERTIFICATES = (
    "Check the address, that the broker runs, and that it accepts this client's certificate: one that is missing, has "
    "expired or was revoked (edgekit ca list) ends the connection without a reason."
)

T = TypeVar("T")


class Route(NamedTuple):
    """The handler of one subscription."""

    handler: Handler
    qos: int
    group: str


class MqttTransport:
    """A Transport over one broker connection.

    Delivery is at most once at QoS 0 and at least once at QoS 1. While the outgoing queue is full
    (`TransportOptions.max_queued_bytes` or `max_queued_messages`), `publish` waits for room in the order of the calls,
    up to `TransportOptions.publish_timeout_seconds`, and then raises TransportError.

    Args:
        url: ``mqtt://[user[:password]@]host[:1883]`` or ``mqtts://...``.
        client_id: Unique at the broker; when a second client uses the same id, the broker disconnects the first.
        will: Published by the broker when this client is lost.
        username, password: Used where `url` names no user, or no password.
        clock: Measures how long a connection lasts.
        ca: PEM file of the authorities that may sign the broker's certificate; the system's where None (mqtts only).
        certificate, key: PEM files of this client's own certificate (mqtts only).
        options: Time limits and sizes; the defaults where None.
        luck: Returns the random number in [0, 1) that sets the wait before each attempt.

    Attributes:
        handler_errors: Number of errors raised by handlers and listeners.
        dropped_messages: Number of messages that no subscription asked for.
        unexpected_errors: Number of connections that ended with an unexpected error; the transport connects again.
        takeovers: Number of connections that the broker ended because another client connected under this client id.

    Raises:
        SettingsError: the URL is malformed, or a certificate file cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        will: Will | None = None,
        username: str | None = None,
        password: str | None = None,
        clock: Clock | None = None,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        options: TransportOptions | None = None,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self.address = parse_url(url)
        self.handler_errors = 0
        self.dropped_messages = 0
        self.unexpected_errors = 0
        self.takeovers = 0
        self._options = options or TransportOptions()
        self._target = LinkTarget(
            host=self.address.host,
            port=self.address.port,
            client_id=client_id,
            username=username if self.address.username is None else self.address.username,
            password=password if self.address.password is None else self.address.password,
            will=will,
            tls=tls_context(ca, certificate, key) if self.address.tls else None,
        )
        self._clock = clock or SystemClock()
        self._luck = luck
        self._reconnect_seconds = 0.0
        self._silences: list[float] = []  # before the ends of the last connections
        self._routes: dict[str, Route] = {}
        self._matcher = MQTTMatcher()  # type: ignore[no-untyped-call]
        self._listeners: list[Callable[[bool], None]] = []
        self._link: Link | None = None
        self._connected = asyncio.Event()
        self._queueing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._protocol: str | None = None
        self._last_failure = "no attempt has ended yet"

    @property
    def connected(self) -> bool:
        """True while the broker has accepted this client and its subscriptions are in place."""
        return self._connected.is_set()

    @property
    def protocol(self) -> str | None:
        """The version of MQTT that the broker accepted last, ``5`` or ``3.1.1``; None before the first connection."""
        return self._protocol

    @property
    def packet_limit(self) -> int:
        """The largest packet that the broker accepts, in bytes; 0 while not connected."""
        return self._link.packet_limit if self._link is not None and self.connected else 0

    @property
    def shares(self) -> bool:
        """True where the broker offers shared subscriptions; False while not connected."""
        return self._link is not None and self.connected and self._link.shares

    async def start(self) -> None:
        """Start a task that connects, and reconnects after every loss. Does nothing when started already."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"mqtt {self.address}")

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Wait until connected.

        Raises:
            TransportError: not connected within the time; the message has the reason of the last failed attempt.
        """
        try:
            await within(timeout_seconds, self._connected.wait())
        except asyncio.TimeoutError:
            raise TransportError(
                f"cannot reach broker {self.address}: {self._last_failure}",
                advice=WITH_CERTIFICATES if self.address.tls else WITHOUT_TLS,
            ) from None

    async def stop(self) -> None:
        """Send queued messages, disconnect cleanly, and end; `start` may be called again."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            await link.close(STOP_SECONDS)
        self._set_connected(False)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expiry_seconds: int | None = None
    ) -> None:
        """Send one message. Returns at QoS 1 when the broker has it, at QoS 0 when it is queued.

        Args:
            topic: A topic without wildcards.
            payload: At most `TransportOptions.max_payload_bytes`.
            qos: 0 or 1.
            retain: True where the broker keeps the message for later subscribers.
            expiry_seconds: The broker deletes the message after this time; without effect under MQTT 3.1.1.

        Raises:
            PacketTooLargeError: the message is larger than edgekit or the broker accepts.
            TransportError: not connected, no room in the queue in time, the broker refused the message, or did not
                acknowledge it in time.
            ValueError: `topic` has a wildcard, or `qos` is neither 0 nor 1.
        """
        if not topic or "+" in topic or "#" in topic or "\0" in topic:
            raise ValueError(f"{topic!r} is not a topic to publish on")
        if qos not in (0, 1):
            raise ValueError(f"QoS is {qos}, expected 0 or 1")
        if len(payload) > self._options.max_payload_bytes:
            limit = self._options.max_payload_bytes
            raise PacketTooLargeError(f"payload is {len(payload)} bytes, the limit is {limit}")
        link = self._link
        if link is None or not self.connected:
            raise TransportError(f"not connected to broker {self.address}: {self._last_failure}")
        link.check_fits(topic, payload)
        send = functools.partial(link.send, topic, payload, qos=qos, retain=retain, expiry_seconds=expiry_seconds)
        if self._queueing.locked() or not link.outbox.has_room(len(payload), qos):
            future = await self._in_time(self._when_room(link, len(payload), qos, send), "the outgoing queue is full")
        else:
            future = send()
        if future is not None:
            await self._in_time(future, "no acknowledgement")

    async def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1, group: str = "") -> None:
        """Call `handler` for each matching message. A second call for the same filter replaces the handler.

        While connected, it returns when the broker has acknowledged. Else the subscription is made on the next connect.

        Raises:
            TransportError: the broker refused the subscription; it is tried again on the next connect.
            ValueError: `topic_filter` is no filter.
        """
        _check_filter(topic_filter)
        route = Route(handler, qos, group)
        self._routes[topic_filter] = route
        self._matcher[topic_filter] = route
        link = self._link
        if link is None or not self.connected:
            return
        name = _broker_filter(link, topic_filter, route)
        link.subscribed.discard(name)  # so that a known filter is sent again, for its retained messages
        if await self._sync_or_drop(link) and name in link.refused:
            raise TransportError(f"broker {self.address} refused to subscribe {topic_filter!r}: {link.refused[name]}")

    async def unsubscribe(self, topic_filter: str) -> None:
        """Stop calling the handler of `topic_filter`. Does nothing where there is none."""
        if self._routes.pop(topic_filter, None) is None:
            return
        del self._matcher[topic_filter]  # type: ignore[no-untyped-call]
        if self._link is not None and self.connected:
            await self._sync_or_drop(self._link)

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(connected)` after every change; after a connect, when subscriptions are acknowledged."""
        self._listeners.append(listener)

    def use_tls(self, ca: Path | None, certificate: Path | None, key: Path | None) -> None:
        """Use other TLS files from the next connection on. Arguments and errors as of the class."""
        if self.address.tls:
            self._target = msgspec.structs.replace(self._target, tls=tls_context(ca, certificate, key))

    def spread_reconnects(self, seconds: float) -> None:
        """Wait a random time of up to `seconds` before the first attempt after the end of an accepted connection."""
        self._reconnect_seconds = seconds

    # --- the connection

    async def _run(self) -> None:
        failures = 0
        while True:
            lasted = None
            try:
                lasted = await self._attempt()
            except Exception as error:
                # After any error (no thread left, a bug), a device must stay reachable: the next attempt starts with a
                # new link. The error is counted and logged.
                self.unexpected_errors += 1
                self._last_failure = f"unexpected {type(error).__name__}: {error}"
                log.exception("the connection to broker %s failed unexpectedly", self.address)
                if self._link is not None:
                    self._link.drop(self._last_failure)
                self._set_connected(False)
            self._link = None
            options = self._options
            if lasted is not None and lasted >= options.stable_seconds:
                failures = 0
            wait = backoff(failures, options.backoff_seconds, options.backoff_cap_seconds, self._luck())
            if lasted is not None:
                wait = max(wait, self._reconnect_seconds * self._luck())
            await asyncio.sleep(wait)
            failures += 1

    async def _attempt(self) -> float | None:
        """Connect and stay connected; the seconds that the connection lasted, None where there was none."""
        try:
            link = await self._open()
        except TransportError as error:
            self._last_failure = str(error)
            log.info("cannot reach broker %s: %s", self.address, error)
            return None
        since = self._clock.monotonic()
        await self._serve(link)
        self.takeovers += link.taken_over
        self._last_failure = link.closed.result()
        log.warning("lost broker %s: %s", self.address, self._last_failure)
        if not link.taken_over:
            self._name_idle_timeout(link.silent_seconds)
        return self._clock.monotonic() - since

    def _name_idle_timeout(self, silent_seconds: float) -> None:
        self._silences = [*self._silences[1 - SAME_SILENCES :], silent_seconds]
        if (idle := idle_timeout(self._silences)) is not None:
            self._silences = []
            log.warning(
                "the last %d connections to broker %s ended after %.0f s without traffic: a proxy or NAT on the way "
                "closes silent ones. Set broker_keepalive_seconds to %d (it is %d)",
                SAME_SILENCES, self.address, idle, max(5, int(idle / 2)), self._options.keepalive_seconds,
            )  # fmt: skip

    async def _open(self) -> Link:
        """Connect with the version that worked last (5 at first), else with the other one."""
        first, second = ("3.1.1", "5") if self._protocol == "3.1.1" else ("5", "3.1.1")
        try:
            return await self._open_as(first)
        except ProtocolRefusedError as refusal:
            if not refusal.certain and self._protocol is not None:
                raise  # the broker spoke this version before, so the version is not the cause
            try:
                return await self._open_as(second)
            except ProtocolRefusedError:
                raise refusal from None

    async def _open_as(self, protocol: str) -> Link:
        link = self._link = Link(self._target, self._options, protocol, self._dispatch)
        await link.open()
        self._protocol = protocol
        return link

    async def _serve(self, link: Link) -> None:
        """Subscribe, notify the listeners, and wait for the end of `link`."""
        if await self._sync_or_drop(link):
            for name, reason in link.refused.items():
                log.error("broker %s refused to subscribe %r: %s", self.address, name, reason)
            log.info("connected to broker %s, MQTT %s", self.address, link.protocol)
            self._set_connected(True)
        await asyncio.shield(link.closed)
        self._set_connected(False)

    async def _sync_or_drop(self, link: Link) -> bool:
        """Make the broker's subscriptions match `_routes`; False where the link was lost meanwhile."""
        try:
            await self._in_time(self._sync(link), "no acknowledgement of a subscription")
        except TransportError as error:
            link.drop(str(error))
        return not link.closed.done()

    async def _sync(self, link: Link) -> None:
        async with self._syncing:
            while True:
                wanted = {_broker_filter(link, name, route): route.qos for name, route in self._routes.items()}
                missing = [item for item in wanted.items() if item[0] not in link.subscribed]
                surplus = [name for name in link.subscribed if name not in wanted]
                if missing:
                    await link.subscribe(missing[:FILTERS_PER_SUBSCRIBE])
                elif surplus:
                    await link.unsubscribe(surplus[:FILTERS_PER_SUBSCRIBE])
                else:
                    return

    async def _when_room(self, link: Link, size: int, qos: int, send: Callable[[], T]) -> T:
        async with self._queueing:  # in the order of the calls
            await link.outbox.wait_room(size, qos)
            return send()

    async def _in_time(self, work: Awaitable[T], problem: str) -> T:
        try:
            return await within(self._options.publish_timeout_seconds, work)
        except asyncio.TimeoutError:
            limit = self._options.publish_timeout_seconds
            raise TransportError(f"broker {self.address}: {problem} within {limit:g} s") from None

    # --- calling handlers and listeners

    def _set_connected(self, connected: bool) -> None:
        if connected == self.connected:
            return
        if connected:
            self._connected.set()
        else:
            self._connected.clear()
        for listener in list(self._listeners):
            self._guard(listener, connected)

    def _dispatch(self, raw: MQTTMessage) -> None:
        try:
            message = Message(raw.topic, bytes(raw.payload), raw.retain)
        except UnicodeDecodeError:
            self.dropped_messages += 1
            return
        routes: list[Route] = list(self._matcher.iter_match(message.topic))  # type: ignore[no-untyped-call]
        if not routes:
            self.dropped_messages += 1
        for route in routes:
            self._guard(route.handler, message)

    def _guard(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            function(argument)
        except Exception:  # an error in a handler must not end the connection; it is counted and logged
            self.handler_errors += 1
            log.exception("a handler of broker %s raised", self.address)


def backoff(failures: int, base_seconds: float, cap_seconds: float, luck: float) -> float:
    """Seconds to wait after `failures` failed attempts, with full jitter; `luck` is a random number in [0, 1)."""
    return luck * min(cap_seconds, base_seconds * 2.0 ** min(failures, 32))


def _broker_filter(link: Link, topic_filter: str, route: Route) -> str:
    return f"$share/{route.group}/{topic_filter}" if route.group and link.shares else topic_filter


def _check_filter(topic_filter: str) -> None:
    levels = topic_filter.split("/")
    misplaced = any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]
    if not topic_filter or misplaced or "\0" in topic_filter or topic_filter.startswith("$share/"):
        raise ValueError(f"{topic_filter!r} is not a topic filter")
