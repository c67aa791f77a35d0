"""One connection to one broker, from its socket to its end: paho-mqtt driven by asyncio.

MqttTransport makes a new one for every attempt, so that nothing of a lost connection lives on. paho's own loop dies
without a word past file descriptor 1023, and one raising callback kills its thread; so its external-loop hooks are used
here, and only its `connect` (name look-up, TCP and TLS handshake, which block) runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.errors import TransportError
from edgekit.mqtt.address import explain_failure
from edgekit.mqtt.outbox import MAX_INFLIGHT, Outbox
from edgekit.protocols import Will
from edgekit.waiting import within

log = logging.getLogger(__name__)

MISC_SECONDS = 1.0  # keepalive pings live in loop_misc
PACKET_OVERHEAD_BYTES = 1024  # topic, headers and properties of one PUBLISH, generously
FILTERS_PER_SUBSCRIBE = 8  # the smallest limit known among hosted brokers

_VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


class ProtocolRefusedError(TransportError):
    """The broker does not speak this version of MQTT; or (not `certain`) hung up or fell silent, as old ones do."""

    def __init__(self, message: str, *, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


class LinkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every connection of a transport shares; sizes in bytes, times in seconds."""

    host: str
    port: int
    client_id: str
    username: str | None
    password: str | None
    will: Will | None
    tls: ssl.SSLContext | None
    keepalive_seconds: int
    connect_timeout_seconds: float
    max_queued_messages: int
    max_queued_bytes: int
    max_payload_bytes: int


class Link:
    """A connection that is opened once and ends once.

    Attributes:
        protocol: ``5`` or ``3.1.1``.
        subscribed: Filters that the broker was asked for, as it knows them.
        refused: Why the broker refused a filter, by filter.
        shares: The broker offers shared subscriptions.
        outbox: What was sent and not seen through.
        closed: Done when the connection is over; its result says why.
    """

    def __init__(self, options: LinkOptions, protocol: str, on_message: Callable[[MQTTMessage], None]) -> None:
        self.protocol = protocol
        self.subscribed: set[str] = set()
        self.refused: dict[str, str] = {}
        self.shares = False
        self.outbox = Outbox(options.max_queued_messages, options.max_queued_bytes)
        self._options = options
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._asked: dict[int, asyncio.Future[Sequence[ReasonCode]]] = {}
        self._packet_limit = options.max_payload_bytes + PACKET_OVERHEAD_BYTES
        self._attached = False
        self._misc: asyncio.TimerHandle | None = None
        self._client = self._make_client()

    # --- opening and closing

    async def open(self) -> None:
        """Connect, and wait until the broker accepts.

        Raises:
            ProtocolRefusedError: it does not speak this version.
            TransportError: it cannot be reached, or refuses this client.
        """
        timeout = self._options.connect_timeout_seconds
        try:
            await self._connect_in_thread()
        except (OSError, ValueError) as error:  # ssl and socket raise ValueError for names they cannot use
            self.drop("not connected")
            raise TransportError(explain_failure(error, timeout)) from error
        try:
            self._attach()
            await within(timeout, self._accepted)
        except asyncio.TimeoutError:
            self.drop("no answer")
            silence = f"it does not answer as an MQTT broker within {timeout:g} s"
            raise ProtocolRefusedError(silence, certain=False) from None
        except TransportError:
            self.drop("refused")
            raise

    async def close(self, timeout_seconds: float) -> None:
        """Send what is queued and a DISCONNECT, so that the will is not published; give up after the time."""
        if self._attached and not self.closed.done():
            self._client.disconnect()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(timeout_seconds, asyncio.shield(self.closed))
        self.drop("stopped")

    def drop(self, reason: str) -> None:
        """End at once, without a DISCONNECT; safe to call at any time, also while connecting."""
        sock = self._client.socket() if self._attached else None
        self._client.on_socket_close = None
        self._client.on_socket_unregister_write = None
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        self._end(reason)

    async def _connect_in_thread(self) -> None:
        """Run paho's blocking connect in a daemon thread: nobody waits for it at exit, and no pool fills up."""
        done: asyncio.Future[None] = self._loop.create_future()

        def finish(error: Exception | None) -> None:
            if done.done() or self.closed.done():
                _close(self._client.socket())
            elif error is not None:
                done.set_exception(error)
            else:
                done.set_result(None)

        def work() -> None:
            error = None
            try:
                self._client.connect(
                    self._options.host, self._options.port, self._options.keepalive_seconds, properties=self._wishes()
                )
            except Exception as caught:  # the thread's boundary: whatever it is, the caller gets it
                error = caught
            try:
                self._loop.call_soon_threadsafe(finish, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                _close(self._client.socket())

        threading.Thread(target=work, name="mqtt-connect", daemon=True).start()
        await done

    def _attach(self) -> None:
        sock = self._client.socket()
        if sock is None:
            raise TransportError("connection lost")
        self._attached = True
        self._loop.add_reader(sock.fileno(), self._readable)
        if self._client.want_write():
            self._loop.add_writer(sock.fileno(), self._client.loop_write)
        self._misc = self._loop.call_later(MISC_SECONDS, self._tick)

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if self._misc is not None:
            self._misc.cancel()
        if not self._accepted.done():
            hung_up = "the broker closed the connection before it accepted this client"
            self._accepted.set_exception(ProtocolRefusedError(hung_up, certain=False))
            self._accepted.exception()
        lost = TransportError(f"the connection was lost before the broker answered ({reason})")
        for future in self._asked.values():
            if not future.done():
                future.set_exception(lost)
        self._asked.clear()
        self.outbox.close(lost)

    # --- sending

    def fits(self, topic: str, payload: bytes) -> bool:
        """Whether the broker takes a packet of this size."""
        return len(topic) + len(payload) + 64 <= self._packet_limit

    def send(
        self, topic: str, payload: bytes, *, qos: int, retain: bool, expiry_seconds: int | None
    ) -> asyncio.Future[None] | None:
        """Queue one message; at QoS 1 the future is done when the broker has it.

        Raises:
            TransportError: the link is closed, or paho takes no more.
        """
        properties = None
        if expiry_seconds is not None and self.protocol == "5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = max(1, int(expiry_seconds))
        if self.closed.done():
            raise TransportError(f"the connection was lost ({self.closed.result()})")
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS and info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise TransportError(f"the message was not taken: {info.rc.name}")
        return self.outbox.add(info.mid, len(payload), qos)

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe, and wait for the broker's answer; refusals are in `refused`.

        Args:
            filters: (filter, QoS); at most FILTERS_PER_SUBSCRIBE.

        Raises:
            TransportError: the link was lost.
        """
        self.subscribed.update(name for name, _ in filters)
        if self.protocol == "5":
            _, mid = self._client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in filters])
        else:
            _, mid = self._client.subscribe(list(filters))
        for (name, _), reason in zip(filters, await self._answer(mid), strict=False):
            self.refused.pop(name, None)
            if reason.is_failure:
                self.refused[name] = str(reason).lower()

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, and wait for the broker's answer. Raises as `subscribe`."""
        self.subscribed.difference_update(filters)
        _, mid = self._client.unsubscribe(list(filters))
        await self._answer(mid)

    async def _answer(self, mid: int | None) -> Sequence[ReasonCode]:
        if mid is None or self.closed.done():
            raise TransportError("the connection was lost")
        self._asked[mid] = self._loop.create_future()
        try:
            return await self._asked[mid]
        finally:
            self._asked.pop(mid, None)

    # --- paho's hooks and callbacks; none of them may raise

    def _make_client(self) -> Client:
        options = self._options
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if self.protocol == "5" else True,
            protocol=_VERSIONS[self.protocol],
            reconnect_on_failure=False,
        )
        client.connect_timeout = options.connect_timeout_seconds
        client.max_queued_messages_set(options.max_queued_messages)
        client.max_inflight_messages_set(0)  # no limit of paho's, which ignores the broker's; the outbox has both
        if options.username is not None:
            client.username_pw_set(options.username, options.password)
        if options.tls is not None:
            client.tls_set_context(options.tls)
        if options.will is not None:
            client.will_set(options.will.topic, options.will.payload, qos=1, retain=options.will.retain)
        client.on_socket_open = _set_nodelay
        client.on_socket_close = self._socket_closing
        client.on_socket_register_write = self._want_write
        client.on_socket_unregister_write = self._unwant_write
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_subscribe = self._answered
        client.on_unsubscribe = self._answered
        client.on_message = self._arrived
        return client

    def _wishes(self) -> Properties | None:
        if self.protocol != "5":
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = self._options.max_payload_bytes + PACKET_OVERHEAD_BYTES
        return properties

    def _readable(self) -> None:
        try:
            self._client.loop_read()
            # TLS: bytes that OpenSSL has read already make no file descriptor readable.
            while isinstance(sock := self._client.socket(), ssl.SSLSocket) and sock.pending():
                self._client.loop_read()
        except Exception as error:  # supervision boundary: a packet that paho cannot parse ends this connection only
            log.warning("broker %s:%d: unreadable packet", self._options.host, self._options.port, exc_info=True)
            self.drop(f"unreadable packet: {error}")

    def _tick(self) -> None:
        self._misc = self._loop.call_later(MISC_SECONDS, self._tick)
        self._client.loop_misc()

    def _socket_closing(self, client: Client, userdata: Any, sock: Any) -> None:
        if self._attached and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())

    def _want_write(self, client: Client, userdata: Any, sock: Any) -> None:
        if self._attached:  # before that we are in the connecting thread; _attach looks itself
            self._loop.add_writer(sock.fileno(), client.loop_write)

    def _unwant_write(self, client: Client, userdata: Any, sock: Any) -> None:
        if self._attached and sock.fileno() >= 0:
            self._loop.remove_writer(sock.fileno())

    def _connected(self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if self._accepted.done():
            return
        if not reason.is_failure:
            self.shares = self.protocol == "5" and bool(getattr(properties, "SharedSubscriptionAvailable", 1))
            self._packet_limit = min(self._packet_limit, getattr(properties, "MaximumPacketSize", self._packet_limit))
            self.outbox.inflight_limit = min(MAX_INFLIGHT, getattr(properties, "ReceiveMaximum", MAX_INFLIGHT))
            self._accepted.set_result(None)
        elif reason.getName() == "Unsupported protocol version":
            problem = f"the broker does not speak MQTT {self.protocol}"
            self._accepted.set_exception(ProtocolRefusedError(problem, certain=True))
        else:
            self._accepted.set_exception(TransportError(f"the broker refused: {str(reason).lower()}"))

    def _disconnected(self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        name = str(reason).lower()
        self._end("the broker went away" if name == "unspecified error" else name)

    def _published(self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self.outbox.sent(mid, reason)

    def _answered(self, client: Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        future = self._asked.get(mid)
        if future is not None and not future.done():
            future.set_result(reasons)

    def _arrived(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        if not self.closed.done():
            self._on_message(message)


def _set_nodelay(client: Client, userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _close(sock: Any) -> None:
    if sock is not None:
        sock.close()
