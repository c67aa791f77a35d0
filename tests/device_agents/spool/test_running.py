"""When the link is free for samples."""

from __future__ import annotations

import time

from device_agents.deployment import UpdateRecord, UpdateState
from device_agents.download.gate import Gate
from device_agents.download.metered import MeteredLink
from device_agents.download.throttle import parse_quiet_hours
from device_agents.spool.running import link_needed
from edgekit.clock import SystemClock
from edgekit.mqtt.messages import Waiting


class HourClock(SystemClock):
    """Its wall time stands at the epoch."""

    def wall(self) -> float:
        """Zero."""
        return 0.0


def test_an_update_that_is_downloaded_comes_first() -> None:
    """One that waits on purpose does not hold samples up."""
    gate = Gate(SystemClock())
    for name in UpdateState:
        held = link_needed({"m": UpdateRecord(name=name)}, gate)
        assert bool(held) is (name in (UpdateState.RESOLVING, UpdateState.DOWNLOADING))
    waiting = UpdateRecord(name=UpdateState.DOWNLOADING, waiting=Waiting("consent"))
    assert link_needed({"m": waiting}, gate) == ""


def test_quiet_hours_and_a_metered_link_hold_samples() -> None:
    """As they hold downloads."""
    clock, hour = HourClock(), time.localtime(0.0).tm_hour
    assert "metered" in link_needed({}, Gate(clock, metered=MeteredLink(always=True)))
    assert "quiet hours" in link_needed(
        {}, Gate(clock, quiet=parse_quiet_hours(f"{hour:02}:00-{(hour + 1) % 24:02}:00"))
    )
