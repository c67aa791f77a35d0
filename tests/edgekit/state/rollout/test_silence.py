"""A silent device that said why it does not follow has failed for that reason, and not only for its silence."""

from __future__ import annotations

import time
from pathlib import Path

from edgekit.mqtt.messages import Event
from edgekit.rollout.plan import Wave
from edgekit.rollout.values import RolloutState
from tests.simulators.control import ControlSide


async def test_the_last_event_of_a_silent_device_stands_beside_its_failure(tmp_path: Path) -> None:
    """Of its assignment or of this model; one that never said anything, or was well before, stays as it is."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        for name in ("mute", "well", "wrong", "other"):
            await side.device(name, behaviour="silent")
        at = time.time() - 60
        for event in (
            Event("wrong", "deployment-succeeded", at, "digits"),
            Event("wrong", "assignment-refused", at, "", "ClockError", "this machine's clock shows 1970"),
            Event("wrong", "drift", at, "digits", "", "inputs differ"),
            Event("well", "deployment-delayed", at, "digits", "SpaceError", "no room"),
            Event("well", "deployment-succeeded", at, "digits"),
            Event("other", "deployment-delayed", at, "cats", "SpaceError", "no room for cats"),
        ):
            side.state.devices.add_event(event, at)
        side.start("digits", "1.0.0", waves=(Wave(share=1.0),), device_deadline_seconds=0.2)
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        reasons = {name: one.reason for name, one in side.rollout().devices.items()}
    silent = "silent: the device reported neither success nor failure within 0.2 s"
    assert {name: reasons[name] for name in ("mute", "well", "other")} == dict.fromkeys(
        ("mute", "well", "other"), silent
    )
    assert reasons["wrong"].startswith(f"{silent}; its last event, 20")
    assert reasons["wrong"].endswith("UTC: assignment-refused: ClockError: this machine's clock shows 1970")
