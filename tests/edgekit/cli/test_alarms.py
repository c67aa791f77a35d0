"""`edgekit alarm list`, and telemetry in `edgekit device show`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.mqtt.messages import Event, Telemetry
from edgekit.sketches.sketch import made
from tests.simulators.shell import Shell, enroll

BUNDLE = "digits@0123456789ab"
HOUR = 3600.0


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    enroll(shell, "pi-1")
    return shell


def serve(shell: Shell, hours: int, now: float) -> None:
    """Hours of telemetry that end before `now`; in the last one a fifth of the requests fail."""
    state = shell.state()
    for number in range(1, hours + 1):
        errors = 100 if number == hours else 0
        sketches = {
            f"{BUNDLE}/route": made(0, {0: 400, **({3: errors} if errors else {})}, (0.0, 3.0), 400 + errors),
            f"{BUNDLE}/latency": made(-3, {32: 400}, (4.0, 4.1), 400),
            "agent/temperature": made(0, {60: 9}, (60.0, 60.0), 9),
        }
        at = now - (hours + 1 - number) * HOUR
        state.telemetry.add(Telemetry("pi-1", 0.0, 60.0, {}, sketches, 1, number), at)
    state.telemetry.judge(now)
    state.close()


def test_alarms_and_the_last_day_are_shown(shell: Shell) -> None:
    """In the list, in the device's own view, and with stable keys as JSON."""
    assert "There is no alarm" in shell("edgekit alarm list")[1]
    serve(shell, 25, time.time())
    out, _ = shell("edgekit alarm list --device pi-1")
    row = out.splitlines()[1].split()
    assert (row[:3], row[5]) == (["pi-1", "digits", "errors"], "open")
    assert "20.00% of 500 requests failed, in the baseline 0.00%" in out
    (found,) = shell.json("edgekit alarm list --all --json")
    assert found.keys() == {"device", "model", "kind", "since", "seen", "ended", "message", "ended_by", "reason"}
    shown, _ = shell("edgekit device show pi-1")
    assert "alarm since" in shown
    line = next(line for line in shown.splitlines() if line.startswith("digits ") and "0123456789ab" in line)
    assert line.split()[3:7] == ["98.9%", "0.0%", "0.0%", "1.1%"]
    assert "temperature in the last 24 hours: median 60 °C, highest 60 °C" in shown
    telemetry = shell.json("edgekit device show pi-1 --json")["telemetry"]
    assert telemetry["bundles"][0]["p50_ms"] == pytest.approx(16, rel=0.1)
    shell("edgekit alarm list --device nobody", expect=1)


def test_an_alarm_of_drift_is_ended_by_hand(shell: Shell) -> None:
    """By device, model and kind; what is not open is an error, and so is an unknown device."""
    state = shell.state()
    for subject in ("input.x", "score"):
        state.drift.save(Event("pi-1", "drift", 1.0, "digits", subject, "moved", {"subject": subject}), time.time())
    state.close()
    assert "drift.input.x" in shell("edgekit alarm list")[0]
    assert "digits drift.score" in " ".join(shell("edgekit device show pi-1")[0].split())
    _, said = shell("edgekit alarm end pi-1 --model digits --kind drift.score --reason cleaned")
    assert "Ended for pi-1: drift.score." in said
    found = shell.json("edgekit alarm end pi-1 --json")
    assert found == {"device": "pi-1", "ended": ["drift.input.x"], "reason": ""}
    assert "There is no alarm" in shell("edgekit alarm list")[1]
    ended = {one["kind"]: one for one in shell.json("edgekit alarm list --all --json")}
    assert ended["drift.score"]["reason"] == "cleaned"
    assert "@" in ended["drift.score"]["ended_by"]
    assert ": cleaned" in shell("edgekit alarm list --all")[0]
    assert "no open alarm" in shell("edgekit alarm end pi-1", expect=1)[1]
    shell(f"edgekit alarm end pi-1 --reason {'x' * 501}", expect=2)
    shell("edgekit alarm end pi-9", expect=1)
