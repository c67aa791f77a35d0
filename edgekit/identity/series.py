"""Rules about the numbers of a device's reports: a report of a lost disk, and two devices under one name. Pure."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from edgekit.mqtt.messages import Reported

LAG_SECONDS = 5.0
KEPT_RUNS = 8
MAX_DEVICES = 100_000


class StoredNumbers(msgspec.Struct, frozen=True):
    """The highest numbers of a device in the database.

    Attributes:
        report, session, command: The numbers; 0 where there is none.
        received: Wall clock seconds at which the stored report was received.
        run: Run of the agent that sent it; empty where unknown.
        payload: The stored report as the device signed it; empty where it is not known.
    """

    report: int = 0
    session: int = 0
    command: int = 0
    received: float = 0.0
    run: str = ""
    payload: bytes = b""


def is_behind(report: Reported, arrived: float, stored: StoredNumbers) -> bool:
    """True where a report was dropped because its sender no longer knows its last number.

    Another controller may have stored later reports of the same run before this one was handled; that is not meant.

    Args:
        report: The dropped report.
        arrived: Wall clock seconds at which it arrived here.
        stored: The numbers in the database.
    """
    if report.number >= stored.report or (report.run and report.run == stored.run):
        return False
    return arrived > stored.received + LAG_SECONDS


def used_up(device: str, number: int) -> str:
    """Advise a new key where a report has the highest number: no report of the device can follow it."""
    return (
        f"report {number} of {device} has the highest number that there is, so none can follow it. Only a holder of "
        f"its key can have sent that. Give it a new key: edgekit device rekey {device}"
    )


class RunHistory:
    """Recognizes two devices under one name: a run that has ended never sends again.

    So a run that sends after another one has sent means two agents. The last KEPT_RUNS runs of a device are kept, of
    MAX_DEVICES devices.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[str, list[str]] = OrderedDict()

    def note(self, device: str, run: str) -> str:
        """Note a message of `run`; returns the run that sent in between, empty if there was none."""
        runs = self._runs.setdefault(device, [])
        self._runs.move_to_end(device)
        if len(self._runs) > MAX_DEVICES:
            self._runs.popitem(last=False)
        if runs and runs[-1] == run:
            return ""
        between = runs[-1] if run in runs else ""
        self._runs[device] = [*(one for one in runs if one != run), run][-KEPT_RUNS:]
        return between

    def knows(self, device: str) -> bool:
        """True if a run of this device was noted."""
        return device in self._runs
