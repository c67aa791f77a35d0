"""Finds a fleet again whose database is lost, from what the broker retains: signed reports and assignments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from securesystemslib.signer import Key, SSlibKey

from edgekit.bounds import MAX_INTEGER
from edgekit.errors import DataError, EdgekitError
from edgekit.identity.record import DeviceRecord
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Envelope, Reported, decode
from edgekit.protocols import Message, Transport
from edgekit.trust.assignment import Assignment, open_assignment
from edgekit.trust.envelopes import open_envelope
from edgekit.trust.keys import public_pem

KINDS = ("reported", "desired")


class FoundDevice(msgspec.Struct, frozen=True):
    """A device whose report the broker retains.

    Attributes:
        name: Name of the device, as its topic says.
        record: Its record, where its report proves itself.
        report: That report.
        assignment: Its retained assignment, where the director has signed it.
        fault: Why it cannot be enrolled from its report; empty if it can.
    """

    name: str
    record: DeviceRecord | None = None
    report: Reported | None = None
    assignment: Assignment | None = None
    fault: str = ""


async def collect_retained(transport: Transport, fleet: str, seconds: float) -> dict[str, dict[str, bytes]]:
    """Listen for `seconds` to the retained reports and assignments. Returns payloads by device and kind.

    Raises:
        TransportError: the broker cannot be reached.
    """
    found: dict[str, dict[str, bytes]] = {}

    def keep(message: Message) -> None:
        where = topics.parse_device(message.topic)
        if where is not None and message.payload:
            found.setdefault(where.device, {})[where.kind] = message.payload

    for kind in KINDS:
        await transport.subscribe(topics.device(fleet, "+", kind), keep)
    await transport.start()
    try:
        await transport.wait_connected(seconds)
        await asyncio.sleep(seconds)
    finally:
        await transport.stop()
    return found


def found_devices(
    retained: Mapping[str, Mapping[str, bytes]], fleet: str, director: Key, now: float
) -> list[FoundDevice]:
    """List the devices that sent retained reports, by name: each with the record that these prove, or the fault.

    A report proves that its sender has the key that it names. That this sender may have the name is proven only by the
    broker, which lets a device write on its own topics alone.

    Args:
        retained: Payloads by device and kind.
        fleet: Name of the fleet.
        director: The director's public key.
        now: Wall clock seconds.
    """
    return [_found(name, one, fleet, director, now) for name, one in sorted(retained.items()) if "reported" in one]


def _found(name: str, payloads: Mapping[str, bytes], fleet: str, director: Key, now: float) -> FoundDevice:
    try:
        report, key = _own_report(payloads["reported"])
        if (report.device, report.fleet) != (name, fleet):
            raise DataError(f"its report names {report.device[:64]!r} of fleet {report.fleet[:64]!r}")
        if not 0 < report.number <= MAX_INTEGER:
            raise DataError(f"its report has number {report.number}, expected 1 to {MAX_INTEGER}")
        target = report.facts.get("target")
        if not isinstance(target, str) or not target:
            raise DataError("its report names no target profile")
    except EdgekitError as error:
        return FoundDevice(name, fault=str(error))
    record = DeviceRecord(
        name, target, public_pem(key), {}, now, session=report.session, received=now, report=payloads["reported"]
    )
    return FoundDevice(name, record, report, _assignment(name, payloads.get("desired"), fleet, director))


def _own_report(payload: bytes) -> tuple[Reported, SSlibKey]:
    claimed = decode(decode(payload, Envelope).body, Reported)
    if not claimed.key:
        raise DataError("its agent is older than this release and reports no key; enroll it with its device.pub")
    if len(claimed.key) != 32:
        raise DataError(f"its report has a key of {len(claimed.key)} bytes, expected 32")
    envelope = decode(payload, Envelope)
    key = SSlibKey(envelope.key, "ed25519", "ed25519", {"public": claimed.key.hex()})
    return open_envelope(payload, Reported, key), key


def _assignment(name: str, payload: bytes | None, fleet: str, director: Key) -> Assignment | None:
    """The retained assignment; None where it does not verify: the device then gets one with the next rollout."""
    if payload is None:
        return None
    try:
        found = open_assignment(payload, director)
    except EdgekitError:
        return None
    return found if (found.device, found.fleet) == (name, fleet) else None
