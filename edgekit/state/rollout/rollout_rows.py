"""Rows of rollouts as values. A row that cannot be read gives a rollout with a fault, and stops no other rollout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import sqlalchemy as sa

from edgekit.errors import SettingsError
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout, RolloutState
from edgekit.trust.assignment import Entry

# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_ROLLOUT = msgspec.json.Decoder(Rollout)
_PROGRESS = msgspec.json.Decoder(DeviceProgress)
_ENTRIES = msgspec.json.Decoder(dict[str, Entry])
_UNREADABLE = (msgspec.MsgspecError, SettingsError, UnicodeDecodeError, RecursionError, ValueError)


def read_rollout(row: sa.RowMapping, members: Iterable[tuple[str, str]]) -> tuple[Rollout, dict[str, Entry]]:
    """A rollout with its devices, and its assignment entries by target.

    Args:
        row: Row of the table `rollouts`.
        members: Name and stored progress of each device.

    Returns:
        Both. Of a row that cannot be read, what can be, and a rollout whose `fault` says what cannot.
    """
    faults = []
    entries: dict[str, Entry] = {}
    try:
        rollout = _ROLLOUT.decode(row["body"])
    except _UNREADABLE as error:
        faults.append(f"its plan: {error}")
        rollout = Rollout(row["id"], row["model"], row["version"], state=RolloutState(row["state"]))
    try:
        entries = _ENTRIES.decode(row["entries"])
    except _UNREADABLE as error:
        faults.append(f"its bundles: {error}")
    devices: dict[str, DeviceProgress] = {}
    for name, text in members:
        devices[name], fault = read_progress(text)
        faults += [f"device {name}: {fault}"] if fault else []
    return msgspec.structs.replace(
        rollout, devices=devices, fault="; ".join([rollout.fault, *faults]).strip("; ")
    ), entries


def read_progress(text: str) -> tuple[DeviceProgress, str]:
    """The stored progress of a device, and what of it cannot be read; such a device has failed."""
    try:
        return _PROGRESS.decode(text), ""
    except _UNREADABLE as error:
        reason = f"its stored progress cannot be read: {error}"
        return DeviceProgress(DeviceState.FAILED, reason=reason), str(error)


def entry_of(entries: Mapping[str, Entry], digest: str) -> Entry | None:
    """The entry of the bundle with this digest; None if there is none."""
    return next((entry for entry in entries.values() if entry.sha256 == digest), None)
