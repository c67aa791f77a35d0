"""A device's record as a file: what one controller exports and another one imports."""

from __future__ import annotations

from typing import Any

import msgspec

from edgekit.bounds import MAX_DATE, MAX_INTEGER, number_fault
from edgekit.errors import DataError
from edgekit.mqtt.topics import check_device_name

FORMAT = 1
MAX_BYTES = 256 * 1024**2


class RecordedEvent(msgspec.Struct, frozen=True):
    """One stored event; `at` is the controller's wall clock in seconds."""

    at: float
    kind: str
    model: str
    error: str
    message: str
    detail: dict[str, Any]


class DeviceRecord(msgspec.Struct, frozen=True):
    """The record that a controller has of one device.

    Attributes:
        name, target, public_key, labels, enrolled: As enrolled.
        session: Number of its newest session.
        received: Wall clock seconds at which its last report was received; 0 if there was none.
        report: Its last report as it signed it, which proves its other numbers; empty if there was none.
        events: Its stored events, the oldest first.
        quarantine: Why it is in quarantine; empty if it is not.
    """

    name: str
    target: str
    public_key: str
    labels: dict[str, str]
    enrolled: float
    session: int = 0
    received: float = 0.0
    report: bytes = b""
    events: tuple[RecordedEvent, ...] = ()
    quarantine: str = ""


class RecordFile(msgspec.Struct, frozen=True):
    """A file of records.

    Attributes:
        format: FORMAT.
        fleet: Name of the fleet, which the devices name in their reports.
        exported: Wall clock seconds.
        devices: The records.
    """

    format: int
    fleet: str
    exported: float
    devices: tuple[DeviceRecord, ...]


def encode_records(file: RecordFile) -> bytes:
    """The file as JSON; bytes are base64."""
    return msgspec.json.encode(file) + b"\n"


def parse_records(data: bytes, fleet: str) -> RecordFile:
    """Parse a file and check its values.

    Args:
        data: The file.
        fleet: The fleet that imports.

    Raises:
        DataError: it is no such file, is for another fleet, or has values that cannot be stored; names every fault.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"the file has {len(data)} bytes, the limit is {MAX_BYTES}")
    try:
        file = msgspec.json.decode(data, type=RecordFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"not a file of devices: {error}", advice="Make it with: edgekit device export ID -o FILE"
        ) from error
    if file.format != FORMAT:
        raise DataError(f"the file has format {file.format}, this edgekit reads {FORMAT}", advice="Update edgekit.")
    if file.fleet != fleet:
        raise DataError(
            f"the file is of fleet {file.fleet!r}, this one is {fleet!r}",
            advice="Devices name their fleet in what they sign: import into the same fleet, or enroll them anew.",
        )
    names = [device.name for device in file.devices]
    faults = [f"device {name} twice" for name in sorted({name for name in names if names.count(name) > 1})]
    faults += [fault for device in file.devices for fault in _faults(device)]
    if faults:
        raise DataError(f"the file cannot be imported: {'; '.join(faults[:10])}")
    return file


def _faults(device: DeviceRecord) -> list[str]:
    try:
        check_device_name(device.name)
    except ValueError as error:
        return [str(error)]
    numbers: dict[str, tuple[float, float]] = {
        "enrolled": (device.enrolled, MAX_DATE),
        "received": (device.received, MAX_DATE),
        "session": (device.session, MAX_INTEGER),
    }
    numbers.update({f"event {at}": (event.at, MAX_DATE) for at, event in enumerate(device.events)})
    found = [number_fault(name, value, 0, most) for name, (value, most) in numbers.items()]
    if any(not key for key in device.labels):
        found.append("a label has no key")
    return [f"{device.name}: {fault}" for fault in found if fault]
