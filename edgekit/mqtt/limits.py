"""Rules about a broker's largest packet, and about what else it must offer. Pure."""

from __future__ import annotations

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.mqtt.messages import MAX_BROADCAST_BLOCKS

PACKET_OVERHEAD_BYTES = 1024  # upper bound for topic, headers, properties and the fields beside the data
BLOCK_PACKET_BYTES = BLOCK_BYTES + PACKET_OVERHEAD_BYTES
MIN_PART_BYTES = 4096  # of a block; smaller parts would be more headers than data
MIN_PACKET_BYTES = MIN_PART_BYTES + PACKET_OVERHEAD_BYTES
ADVISED_BYTES = 327_680  # five blocks: a broadcast has up to three, and an assignment may have four


def part_bytes(limit: int) -> int:
    """Bytes of a block that one packet can have: BLOCK_BYTES where it has room for a block, else less.

    Where there is not even room for MIN_PART_BYTES, it is BLOCK_BYTES too: a block then fails with an error of its own.

    Args:
        limit: The broker's largest packet in bytes; 0 where it did not say.
    """
    if not limit or limit >= BLOCK_PACKET_BYTES or packet_fault(limit):
        return BLOCK_BYTES
    return limit - PACKET_OVERHEAD_BYTES


def packet_fault(limit: int) -> str:
    """Why blocks cannot come through a broker, not even in parts; empty if they can.

    Args:
        limit: The broker's largest packet in bytes; 0 where it did not say.
    """
    if not limit or limit >= MIN_PACKET_BYTES:
        return ""
    return (
        f"the broker accepts packets of up to {limit} bytes, and a part of a block needs {MIN_PACKET_BYTES}: no bundle "
        f"with a larger file can come over MQTT. Set the broker's maximum packet size (mosquitto: max_packet_size) to "
        f"{ADVISED_BYTES}, or let blocks come by HTTP (blob_urls)"
    )


def too_large(needed: int, limit: int) -> str:
    """The error of one message; both sizes in bytes."""
    return f"the packet needs {needed} bytes, and the broker accepts {limit}"


def broadcast_blocks(limit: int) -> int:
    """Blocks of one broadcast message; at least 1, because a single block fails with an error of its own.

    Args:
        limit: The broker's largest packet in bytes; 0 where it did not say.
    """
    most = (limit - PACKET_OVERHEAD_BYTES) // BLOCK_BYTES if limit else MAX_BROADCAST_BLOCKS
    return max(1, min(most, MAX_BROADCAST_BLOCKS))


def missing_service(*, qos: int, retains: bool, wildcards: bool) -> str:
    """What a broker lacks that edgekit cannot do without, and what to do; empty if it lacks nothing.

    Assignments, reports and presence are retained at QoS 1, and the controller subscribes with wildcards.

    Args:
        qos: The broker's highest QoS.
        retains: True where it keeps retained messages.
        wildcards: True where it accepts filters with wildcards.
    """
    if not retains:
        return (
            "it keeps no retained messages, in which edgekit keeps assignments, reports and presence; turn them on "
            "(mosquitto: retain_available true)"
        )
    if qos < 1:
        return "it offers QoS 0 only, and edgekit needs QoS 1; raise its limit (mosquitto: max_qos 2)"
    if not wildcards:
        return "it refuses filters with wildcards, which the controller needs for the topics of all devices; allow them"
    return ""
