"""`edgekit audit` and `edgekit assign` on the command line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.mqtt.messages import Reported, Running, Waiting
from tests.simulators.control import write_bundle
from tests.simulators.shell import Shell, enroll


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGNAME", "ann")
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    for version in ("1.0.0", "2.0.0"):
        write_bundle(tmp_path / version, "digits", version)
        shell(f"edgekit registry publish {version}")
    shell("edgekit registry promote digits 1.0.0 stable")
    enroll(shell, "pi-1", "pi-2")
    return shell


def apply(shell: Shell) -> dict[int, list[str]]:
    """Apply the standing assignments, as a controller does."""
    state = shell.state()
    given = state.standing.apply(time.time())
    state.close()
    return given


def test_the_log_is_listed_and_verified(shell: Shell) -> None:
    """Who made a change, and the head that is noted elsewhere; a changed entry ends with exit 3."""
    shell("edgekit rollout start digits 1.0.0")
    shell("edgekit rollout pause 1 --reason lunch")
    out, _ = shell("edgekit audit list")
    newest = out.splitlines()[1]
    assert "rollout.pause" in newest
    assert "ann@" in newest
    assert "reason=lunch, state=PAUSED, wave=1" in newest
    rows = shell.json("edgekit audit list --what device --json")
    assert [row["subject"] for row in rows] == ["pi-2", "pi-1"]
    assert [row["number"] for row in shell.json("edgekit audit list --limit 1 --before 3 --json")] == [2]
    out, _ = shell("edgekit audit verify")
    assert out.startswith("4 entries are whole; head 4:")
    head = shell.json("edgekit audit verify --json")["head"]
    shell("edgekit rollout abort 1")
    shell(f"edgekit audit verify --head {head[:12]}")
    shell("edgekit audit verify --head 4", expect=2)
    _, err = shell(f"edgekit audit verify --head 3:{head[2:]}", expect=3)
    assert "entry 3 of the audit log is not the one that was noted" in err
    state = shell.state()
    with state._engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_no_update")
        connection.exec_driver_sql("UPDATE audit SET who = 'bob' WHERE number = 2")
    state.close()
    _, err = shell("edgekit audit verify", expect=3)
    assert "entry 2 of the audit log was changed" in err


def test_a_standing_assignment_reaches_who_has_nothing(shell: Shell) -> None:
    """It takes the channel's version; lists say what is assigned, and where nothing is."""
    out, _ = shell("edgekit device list")
    assert out.count("nothing assigned") == 2
    _, err = shell("edgekit assign add digits --channel stable --filter 'name != pi-2' --per-hour 60 --dry-run")
    assert "raspberry-pi-4 1.0.0" in err
    made = shell.json("edgekit assign add digits --channel stable --filter 'name != pi-2' --per-hour 60 --json")
    assert made["bundles"] == {"raspberry-pi-4": "1.0.0"}
    assert apply(shell) == {1: ["pi-1"]}
    rows = {row["device"]: row["assigned"] for row in shell.json("edgekit device list --json")}
    assert rows == {"pi-1": {"digits": "1.0.0"}, "pi-2": {}}
    out, _ = shell("edgekit device list")
    assert out.count("nothing assigned") == 1
    out, _ = shell("edgekit assign list")
    assert "digits from channel stable" in out
    _, err = shell("edgekit assign add digits --version 2.0.0 --filter 'name != pi-2'", expect=1)
    assert "edgekit assign remove 1" in err
    shell("edgekit assign remove 1")
    assert shell.json("edgekit assign list --json") == []
    shell("edgekit assign remove 1", expect=1)


def test_wrong_usage_of_assign(shell: Shell) -> None:
    """One of version and channel; numbers in range; models and versions that exist."""
    shell("edgekit assign add digits", expect=2)
    shell("edgekit assign add digits --version 1.0.0 --channel stable", expect=2)
    shell("edgekit assign add digits --version 1.0.0 --per-hour nan", expect=2)
    shell("edgekit assign remove 99999999999999999999", expect=2)
    _, err = shell("edgekit assign add digits --version 9.0.0", expect=1)
    assert "1.0.0 for raspberry-pi-4" in err
    shell("edgekit registry promote digits 1.0.0 stable")
    _, err = shell("edgekit assign add digits --channel beta", expect=1)
    assert "1.0.0 for raspberry-pi-4 (channel stable)" in err
    shell("edgekit assign add letters --version 1.0.0", expect=1)


def test_a_list_says_who_waits(shell: Shell) -> None:
    """The reason stands beside the model."""
    state = shell.state()
    running = {"digits": Running(waiting=Waiting("quiet-hours", 1.0, "a" * 64))}
    state.devices.save_report(Reported("pi-1", "f1", 1, 0.0, 1, running, {}), time.time())
    state.close()
    out, _ = shell("edgekit device list")
    assert "digits none (waits: quiet-hours)" in out
