"""An expired command says whether it was sent, and what the device said to it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edgekit.mqtt.messages import Event, Presence
from edgekit.rollout.cohort import Device
from edgekit.state import open_fleet_state


def test_why_a_command_has_no_answer(tmp_path: Path) -> None:
    """Offline, silent, or unable to verify it: three devices, three reasons."""
    with contextlib.closing(open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "lab")) as state:
        for name in ("away", "mute", "full"):
            state.devices.enroll(Device(name, "raspberry-pi-4", "", enrolled=1.0))
            state.devices.save_presence(name, Presence(online=name != "away", session=1), 1000.0)
            state.commands.add(name, "self-test", now=1000.0, expires=1060.0)
        state.devices.add_event(Event("mute", "command-refused", 1.0, "", "ExpiredError", "an earlier one"), 900.0)
        sent = state.commands.to_send(1001.0)
        assert {one.device for one in sent} == {"mute", "full"}
        state.commands.sent_all(sent)
        state.devices.add_event(Event("full", "command-refused", 1.0, "", "DiskError", "no space left"), 1002.0)
        assert state.commands.to_send(1061.0) == []
        said = {one.device: (one.state, one.message) for one in state.commands.latest()}
    assert said == {
        "away": ("expired", "it was not sent, because the device was not online"),
        "mute": ("expired", "the device did not answer"),
        "full": ("expired", "the device refused a command: DiskError: no space left"),
    }
