"""Runs commands of the control side in one folder, and what devices and controllers do meanwhile."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli.main import edgekit, run
from edgekit.mqtt.messages import Outcome, Reported, Running
from edgekit.rollout.values import Rollout
from edgekit.state import FleetState, open_fleet_state

TARGET = "raspberry-pi-4"


class Shell:
    """Runs commands in one folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd

    def __call__(self, line: str, expect: int = 0) -> tuple[str, str]:
        """Run one line and return its stdout and stderr. Words in single quotes are one argument."""
        parts = line.split("'")
        words = [word for at, part in enumerate(parts) for word in ([part] if at % 2 else part.split())]
        self._monkeypatch.setattr(sys, "argv", words)
        self._capfd.readouterr()
        found = run(edgekit, "edgekit")
        out, err = self._capfd.readouterr()
        assert found == expect, f"{line}: exit {found}, expected {expect}\n{out}\n{err}"
        return out, err

    def json(self, line: str, expect: int = 0) -> Any:
        """Run one line and decode its stdout as JSON."""
        return json.loads(self(line, expect)[0])

    def state(self) -> FleetState:
        """The fleet's database, opened once more."""
        return open_fleet_state(f"sqlite:///{self.folder / 'edgekit.db'}", "f1")


def enroll(shell: Shell, *names: str, target: str = TARGET) -> None:
    """Enroll devices."""
    for name in names:
        shell(f"edgekit device enroll {name} --target {target}")


def report(
    shell: Shell, name: str, number: int, *, digest: str = "", refuses: str = "", running: Running | None = None
) -> None:
    """Store a report, as the device's agent would send it."""
    running = running or Running(digest=digest, version="1.0.0" if digest else "", provider="XNNPACK")
    outcome = Outcome(refuses, "1.0.0", "refused", "SelfTestError", "wrong answers", 5.0)
    said = Reported(name, "f1", number, 0.0, 1, {"digits": running}, {"digits": outcome} if refuses else {})
    state = shell.state()
    state.devices.save_report(said, time.time())
    state.close()


def survey(shell: Shell, number: int = 1) -> Rollout:
    """Survey the rollout, as a controller's next round does; returns the rollout."""
    state = shell.state()
    rollout = state.rollouts.survey(number, time.time())
    state.close()
    return rollout
