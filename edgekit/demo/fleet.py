"""The state of the demo's fleet, read from the output of edgekit's commands."""

from __future__ import annotations

import json
from typing import Any

from edgekit.demo.claims import expect
from edgekit.demo.processes import Processes

FLEET = "demo"
MODEL, CLOUD_MODEL = "digits", "digits-cloud"
PI, JETSON = "raspberry-pi-4", "jetson-orin"
DEVICES = {"pi-1": PI, "pi-2": PI, "jetson-1": JETSON}


class Fleet:
    """Reads the reports of the demo's devices.

    Args:
        processes: Runs the commands.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def devices(self) -> list[dict[str, Any]]:
        """Every device with its running models and the outcomes of its deployments."""
        devices: list[dict[str, Any]] = json.loads(self._processes.run("edgekit device list --json"))
        return devices

    def rollout(self, version: str) -> dict[str, Any]:
        """The rollout of this version of the model."""
        rollouts = json.loads(self._processes.run("edgekit rollout list --json"))
        return next(dict(row) for row in rollouts if row["model"] == MODEL and row["version"] == version)

    def expect_version(self, version: str, target: str = "") -> None:
        """Check that every device of `target` runs this version; empty for all devices. Raises DemoError."""
        for row in self.devices():
            if row["target"] == target or not target:
                found = row["models"][MODEL]["version"]
                expect(found == version, f"{row['device']} reports {version}, found {found}")

    def refusal(self, version: str, error: str) -> str:
        """Check that a device refused this version with this error. Returns its message. Raises DemoError."""
        refused = [
            (row["device"], row["outcomes"][MODEL])
            for row in self.devices()
            if row["outcomes"].get(MODEL, {}).get("version") == version and row["outcomes"][MODEL]["error"] == error
        ]
        expect(bool(refused), f"a device refused {version} with {error}")
        device, outcome = refused[0]
        return f"{device} refused {version}: {outcome['message']}"
