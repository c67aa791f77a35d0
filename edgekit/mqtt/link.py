"""One connection to one broker, from connect to close: paho-mqtt driven by asyncio.

MqttTransport makes a new Link for every attempt, so that no state of a lost connection remains. paho's own loop stops
silently past file descriptor 1023, and a callback that raises kills its thread. So this file uses paho's hooks for an
external loop; only paho's blocking `connect` (name look-up, TCP and TLS handshake) runs in a thread.
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

from edgekit.errors import PacketTooLargeError, TransportError
from edgekit.mqtt.address import explain_failure
from edgekit.mqtt.buffered_client import BufferedClient
from edgekit.mqtt.limits import ADVISED_BYTES, PACKET_OVERHEAD_BYTES, missing_service, too_large
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.outbox import MAX_INFLIGHT, Outbox
from edgekit.protocols import Will
from edgekit.waiting import within

log = logging.getLogger(__name__)

MISC_SECONDS = 1.0  # interval of paho's loop_misc, which sends keepalive pings
PACKETS_A_TURN = 64  # read in one turn of the event loop
FILTERS_PER_SUBSCRIBE = 8  # the smallest known limit of hosted brokers
SESSION_TAKEN_OVER = 0x8E  # reason of a DISCONNECT in MQTT 5
RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 0x9A, 0x9B  # reasons of a CONNACK in MQTT 5, here because of the will

_VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


class ProtocolRefusedError(TransportError):
    """The broker does not speak this version of MQTT.

    Attributes:
        certain: False where the broker only closed the connection or did not answer, as old brokers do.
    """

    def __init__(self, message: str, *, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


class LinkTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The broker, and the identity with which a client connects."""

    host: str
    port: int
    client_id: str
    username: str | None
    password: str | None
    will: Will | None
    tls: ssl.SSLContext | None


class Link:
    """A connection that is opened once and ends once.

    Args:
        target: The broker and this client's identity.
        options: Time limits and sizes.
        protocol: ``5`` or ``3.1.1``.
        on_message: Called with each received message.

    Attributes:
        protocol: ``5`` or ``3.1.1``.
        subscribed: Requested filters in the broker's form.
        refused: Reasons of refused filters, by filter.
        packet_limit: The largest packet that both sides accept, in bytes.
        shares: True where the broker offers shared subscriptions.
        outbox: Queued and unacknowledged messages.
        closed: Done when the connection has ended; its result is the reason.
        taken_over: True where the broker ended it because another client connected under the same client id.
        silent_seconds: Time without traffic before the end.
    """

    def __init__(
        self,
        target: LinkTarget,
        options: TransportOptions,
        protocol: str,
        on_message: Callable[[MQTTMessage], None],
    ) -> None:
        self.protocol = protocol
        self.subscribed: set[str] = set()
        self.refused: dict[str, str] = {}
        self.shares = False
        self.taken_over = False
        self.silent_seconds = 0.0
        self.outbox = Outbox(options.max_queued_messages, options.max_queued_bytes)
        self._target, self._options = target, options
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._active_at = self._loop.time()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._acknowledgements: dict[int, asyncio.Future[Sequence[ReasonCode]]] = {}
        self.packet_limit = options.max_payload_bytes + PACKET_OVERHEAD_BYTES
        self._attached = self._waits_to_write = self._reads_on = False
        self._misc: asyncio.TimerHandle | None = None
        self._client = self._make_client()

    # --- opening and closing

    async def open(self) -> None:
        """Connect, and wait until the broker accepts.

        Raises:
            ProtocolRefusedError: the broker does not speak this version.
            TransportError: the broker cannot be reached, or refuses this client.
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
            message = f"it did not answer as an MQTT broker within {timeout:g} s"
            raise ProtocolRefusedError(message, certain=False) from None
        except TransportError:
            self.drop("refused")
            raise

    async def close(self, timeout_seconds: float) -> None:
        """Send queued messages and a DISCONNECT, so that the will is not published; stop waiting after the time."""
        if self._attached and not self.closed.done():
            self._client.disconnect()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(timeout_seconds, asyncio.shield(self.closed))
        self.drop("stopped")

    def drop(self, reason: str) -> None:
        """End at once, without a DISCONNECT. It may be called at any time, also while connecting."""
        sock = self._client.socket() if self._attached else None
        self._client.on_socket_close = None
        self._client.on_socket_unregister_write = None
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        self._end(reason)

    async def _connect_in_thread(self) -> None:
        """Run paho's blocking connect in a daemon thread, which neither delays the exit nor occupies a thread pool."""
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
                    self._target.host,
                    self._target.port,
                    self._options.keepalive_seconds,
                    properties=self._connect_properties(),
                )
            except Exception as caught:  # raised in the caller, which waits for `done`
                error = caught
            try:
                self._loop.call_soon_threadsafe(finish, error)
            except RuntimeError:  # the loop is closed, and no caller waits any more
                _close(self._client.socket())

        threading.Thread(target=work, name="mqtt-connect", daemon=True).start()
        await done

    def _attach(self) -> None:
        sock = self._client.socket()
        if sock is None:
            raise TransportError("connection lost")
        self._attached = True
        self._loop.add_reader(sock.fileno(), self._readable)
        self._write()
        self._misc = self._loop.call_later(MISC_SECONDS, self._tick)

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self.silent_seconds = self._loop.time() - self._active_at
        if self._misc is not None:
            self._misc.cancel()
        if not self._accepted.done():
            message = "the broker closed the connection before it accepted this client"
            self._accepted.set_exception(ProtocolRefusedError(message, certain=False))
            self._accepted.exception()
        lost = TransportError(f"the connection was lost before the broker answered ({reason})")
        for future in self._acknowledgements.values():
            if not future.done():
                future.set_exception(lost)
        self._acknowledgements.clear()
        self.outbox.close(lost)

    # --- sending

    def check_fits(self, topic: str, payload: bytes) -> None:
        """Check that the broker accepts a packet of this size.

        Raises:
            PacketTooLargeError: it does not.
        """
        needed = len(topic.encode()) + len(payload) + 64
        if needed > self.packet_limit:
            raise PacketTooLargeError(
                f"{too_large(needed, self.packet_limit)} ({topic})",
                advice=f"Set the broker's maximum packet size (mosquitto: max_packet_size) to {ADVISED_BYTES}.",
            )

    def send(
        self, topic: str, payload: bytes, *, qos: int, retain: bool, expiry_seconds: int | None
    ) -> asyncio.Future[None] | None:
        """Queue one message. At QoS 1, the returned future is done when the broker has it.

        Raises:
            TransportError: the link is closed, or paho refuses the message.
        """
        properties = None
        if expiry_seconds is not None and self.protocol == "5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = max(1, int(expiry_seconds))
        if self.closed.done():
            raise TransportError(f"the connection was lost ({self.closed.result()})")
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS and info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise TransportError(f"paho refused the message: {info.rc.name}")
        return self.outbox.add(info.mid, len(payload), qos)

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe, and wait for the broker's answer; refusals are noted in `refused`.

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
        for (name, _), reason in zip(filters, await self._acknowledged(mid), strict=False):
            self.refused.pop(name, None)
            if reason.is_failure:
                self.refused[name] = str(reason).lower()

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, and wait for the broker's answer. Raises as `subscribe`."""
        self.subscribed.difference_update(filters)
        _, mid = self._client.unsubscribe(list(filters))
        await self._acknowledged(mid)

    async def _acknowledged(self, mid: int | None) -> Sequence[ReasonCode]:
        if mid is None or self.closed.done():
            raise TransportError("the connection was lost")
        self._acknowledgements[mid] = self._loop.create_future()
        try:
            return await self._acknowledgements[mid]
        finally:
            self._acknowledgements.pop(mid, None)

    # --- paho's hooks and callbacks, which must not raise

    def _make_client(self) -> BufferedClient:
        target, options = self._target, self._options
        client = BufferedClient(
            CallbackAPIVersion.VERSION2,
            client_id=target.client_id,
            clean_session=None if self.protocol == "5" else True,
            protocol=_VERSIONS[self.protocol],
            reconnect_on_failure=False,
        )
        client.connect_timeout = options.connect_timeout_seconds
        client.max_queued_messages_set(options.max_queued_messages)
        client.max_inflight_messages_set(0)  # paho's limit is off, because it ignores the broker's; `outbox` has both
        if target.username is not None:
            client.username_pw_set(target.username, target.password)
        if target.tls is not None:
            client.tls_set_context(target.tls)
        if target.will is not None:
            client.will_set(target.will.topic, target.will.payload, qos=1, retain=target.will.retain)
        client.on_socket_open = _set_nodelay
        client.on_socket_close = self._socket_closing
        client.on_socket_register_write = self._want_write
        client.on_socket_unregister_write = self._unwant_write
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_subscribe = self._answer_received
        client.on_unsubscribe = self._answer_received
        client.on_message = self._message_received
        return client

    def _connect_properties(self) -> Properties | None:
        if self.protocol != "5":
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = self._options.max_payload_bytes + PACKET_OVERHEAD_BYTES
        return properties

    def _readable(self) -> None:
        """Read what has arrived, at most PACKETS_A_TURN packets: a broker that never stops must not stop the loop."""
        try:
            for _ in range(PACKETS_A_TURN):
                self._client.loop_read()
                if not self.closed.done():
                    self._active_at = self._loop.time()
                if not (self._client.buffered or self._pending_tls()):
                    return
        except Exception as error:  # paho raises many errors for malformed packets; they end this connection only
            log.warning("broker %s:%d: unreadable packet", self._target.host, self._target.port, exc_info=True)
            self.drop(f"unreadable packet: {error}")
            return
        if not self._reads_on:
            self._reads_on = True
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._reads_on = False
        if not self.closed.done():
            self._readable()

    def _pending_tls(self) -> bool:
        """True for bytes that OpenSSL has already read: they do not make the file descriptor readable."""
        sock = self._client.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _tick(self) -> None:
        self._misc = self._loop.call_later(MISC_SECONDS, self._tick)
        self._client.loop_misc()

    def _socket_closing(self, client: Client, userdata: Any, sock: Any) -> None:
        if self._attached and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())

    def _want_write(self, client: Client, userdata: Any, sock: Any) -> None:
        if self._attached:  # before that, the connecting thread runs; `_attach` checks for bytes to write
            self._loop.call_soon(self._write)

    def _unwant_write(self, client: Client, userdata: Any, sock: Any) -> None:
        if self._waits_to_write and sock.fileno() >= 0:
            self._loop.remove_writer(sock.fileno())
        self._waits_to_write = False

    def _write(self) -> None:
        """Send what this turn of the loop has queued; watch the socket only where it does not accept all of it."""
        if self.closed.done():
            return
        if self._client.want_write():
            self._active_at = self._loop.time()
        self._client.loop_write()
        sock = self._client.socket()
        if sock is not None and self._client.want_write() and not self._waits_to_write:
            self._waits_to_write = True
            self._loop.add_writer(sock.fileno(), self._client.loop_write)

    def _connected(self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if self._accepted.done():
            return
        lacks = missing_service(
            qos=0 if reason.value == QOS_NOT_SUPPORTED else getattr(properties, "MaximumQoS", 2),
            retains=reason.value != RETAIN_NOT_SUPPORTED and bool(getattr(properties, "RetainAvailable", 1)),
            wildcards=bool(getattr(properties, "WildcardSubscriptionAvailable", 1)),
        )
        if lacks:
            self._accepted.set_exception(TransportError(f"the broker cannot be used: {lacks}"))
        elif not reason.is_failure:
            self.shares = self.protocol == "5" and bool(getattr(properties, "SharedSubscriptionAvailable", 1))
            self.packet_limit = min(self.packet_limit, getattr(properties, "MaximumPacketSize", self.packet_limit))
            self.outbox.inflight_limit = min(MAX_INFLIGHT, getattr(properties, "ReceiveMaximum", MAX_INFLIGHT))
            self._accepted.set_result(None)
        elif reason.getName() == "Unsupported protocol version":
            problem = f"the broker does not speak MQTT {self.protocol}"
            self._accepted.set_exception(ProtocolRefusedError(problem, certain=True))
        else:
            self._accepted.set_exception(TransportError(f"the broker refused this client: {str(reason).lower()}"))

    def _disconnected(self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        name = str(reason).lower()
        self.taken_over = self.taken_over or reason.value == SESSION_TAKEN_OVER
        if self.taken_over:
            name = f"another client connected under this name ({self._target.client_id})"
        self._end("the broker closed the connection" if name == "unspecified error" else name)

    def _published(self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self.outbox.sent(mid, reason)

    def _answer_received(self, client: Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        future = self._acknowledgements.get(mid)
        if future is not None and not future.done():
            future.set_result(reasons)

    def _message_received(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        if not self.closed.done():
            self._on_message(message)


def _set_nodelay(client: Client, userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _close(sock: Any) -> None:
    if sock is not None:
        sock.close()
