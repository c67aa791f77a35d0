"""Time limits and sizes of an MQTT transport."""

from __future__ import annotations

import msgspec

from edgekit.mqtt.messages import MAX_PAYLOAD_BYTES


class TransportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits in seconds and sizes of an MQTT transport.

    Attributes:
        keepalive_seconds: A broker that sends nothing is given up after about twice this time.
        connect_timeout_seconds: For the name look-up, TCP and TLS, and again for the broker's answer.
        publish_timeout_seconds: For room in the outgoing queue, and again for the acknowledgement of a QoS 1 message;
            also for the acknowledgement of a subscription.
        backoff_seconds, backoff_cap_seconds: The n-th attempt in a row waits a random time between 0 and
            min(cap, backoff * 2^n).
        stable_seconds: n starts from 0 again after a connection that lasted this long.
        max_queued_messages, max_queued_bytes: Limits of the outgoing queue.
        max_payload_bytes: Larger payloads are refused.
    """

    keepalive_seconds: int = 30
    connect_timeout_seconds: float = 10.0
    publish_timeout_seconds: float = 10.0
    backoff_seconds: float = 1.0
    backoff_cap_seconds: float = 60.0
    stable_seconds: float = 60.0
    max_queued_messages: int = 256
    max_queued_bytes: int = 2 * 1024 * 1024
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
