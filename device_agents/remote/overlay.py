"""The overlay file: settings that the command `set` changed, in the state folder, so that they survive restarts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from device_agents.remote.answer import CommandAnswer
from device_agents.remote.overlay_rules import FORMAT, OverlayRecord, changed, confirmed, started
from device_agents.threads import in_thread
from edgekit.errors import DataError, DiskError, SettingsError
from edgekit.mqtt.command_arguments import SetArguments
from edgekit.mqtt.remote_settings import SETTABLE
from edgekit.protocols import Disk
from edgekit.settings import AgentSettings, load_settings
from edgekit.storage.disk import FolderDisk

log = logging.getLogger(__name__)

OVERLAY_NAME = "settings-overlay.json"


class Overlay:
    """The overlay of one device.

    Args:
        disk: The device's folder.

    Attributes:
        record: What the file holds.
        fault: Why its values are not used; empty if they are.
        reverted: The values that this start took back, because no start with them had reached the broker.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.fault = ""
        self.reverted: dict[str, str] = {}
        self.record = self._read()

    def begin_start(self) -> None:
        """Count a start of the agent, and take back a change that never worked. A failed write is logged."""
        after = started(self.record)
        if after == self.record:
            return
        if after.values != self.record.values:
            self.reverted = self.record.values
            log.error("remote settings are taken back, no start with them reached the broker: %s", self.reverted)
        try:
            self._write(after)
        except DiskError as error:
            log.error("the remote settings cannot be written: %s", error)
            self.record = after

    def confirm(self) -> None:
        """Keep the values: the agent runs with them and has reached the broker. Raises DiskError."""
        if self.record.previous is not None:
            self._write(confirmed(self.record))

    def change(self, changes: Mapping[str, str]) -> None:
        """Store changes for the next start. Raises DiskError."""
        after = changed(self.record, changes)
        if after != self.record:
            self._write(after)

    def _read(self) -> OverlayRecord:
        try:
            record = msgspec.json.decode(self._disk.read(OVERLAY_NAME), type=OverlayRecord)
            if not 1 <= record.format <= FORMAT:
                raise DataError(f"it has format {record.format}, this agent reads up to {FORMAT}")
            if odd := sorted(set(record.values) - set(SETTABLE)):
                raise DataError(f"{', '.join(odd)} cannot be set remotely")
        except FileNotFoundError:
            return OverlayRecord()
        except (msgspec.MsgspecError, UnicodeDecodeError, DataError, DiskError) as error:
            self.fault = f"the remote settings in {self._disk.path(OVERLAY_NAME)} are not used: {error}"
            return OverlayRecord()
        return record

    def _write(self, record: OverlayRecord) -> None:
        if record == OverlayRecord():
            self._disk.remove(OVERLAY_NAME)
        else:
            self._disk.write(OVERLAY_NAME, msgspec.json.encode(record))
        self.record, self.fault = record, ""


class RemoteSettings:
    """Runs the command `set`.

    Args:
        overlay: The overlay file.
        check: Checks all settings with these values of the overlay; raises SettingsError.
        restartable: Whether this process can restart.
    """

    def __init__(self, overlay: Overlay, check: Callable[[Mapping[str, str]], object], *, restartable: bool) -> None:
        self._overlay, self._check, self._restartable = overlay, check, restartable

    async def answer(self, arguments: SetArguments) -> CommandAnswer:
        """Check and store the changes; nothing is stored if one of them is not valid.

        Raises:
            SettingsError: a value is not valid.
            DiskError: the overlay cannot be written.
        """
        before = self._overlay.record
        after = changed(before, arguments.values)
        self._check(after.values)
        await in_thread(self._overlay.change, arguments.values)
        shown = ", ".join(f"{key} = {value}" for key, value in sorted(after.values.items())) or "none"
        if after == before:
            return CommandAnswer(True, f"nothing to change; remote settings: {shown}", {"values": after.values})
        restart = arguments.restart and self._restartable
        when = "the agent restarts now" if restart else "they take effect at its next start"
        return CommandAnswer(True, f"remote settings: {shown}; {when}", {"values": after.values}, restart=restart)


def load_agent_settings(config: Path, flags: Mapping[str, Any], *, start: bool) -> tuple[AgentSettings, Overlay]:
    """Settings with the overlay of their state folder.

    Args:
        config: The settings file.
        flags: Settings by key that win over everything.
        start: True if the agent starts with them: counts the start.

    Returns:
        The settings, and the overlay; its `fault` says if its values are not used.

    Raises:
        SettingsError: the settings are not valid without the overlay either.
    """
    settings = load_settings(AgentSettings, file=config, flags=flags)
    overlay = Overlay(FolderDisk(settings.state))
    if start:
        overlay.begin_start()
    if overlay.record.values:
        try:
            settings = with_values(config, flags, overlay.record.values)
        except SettingsError as error:
            overlay.fault = f"the remote settings are not used: {error}"
    if overlay.fault:
        log.error("%s", overlay.fault)
    return settings, overlay


def with_values(config: Path, flags: Mapping[str, Any], values: Mapping[str, str]) -> AgentSettings:
    """The settings with these values of the overlay. Raises SettingsError."""
    return load_settings(
        AgentSettings, file=config, flags={**values, **{k: v for k, v in flags.items() if v is not None}}
    )
