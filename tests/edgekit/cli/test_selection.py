"""Filters on the command line: lists, rollouts, commands and groups select devices in the same way."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.mqtt.messages import Reported, Running
from edgekit.rollout.cohort import Device
from tests.simulators.control import write_bundle
from tests.simulators.shell import TARGET, Shell, survey


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """A registry with digits 2.0.0, and three devices in two sites, of which one reports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    write_bundle(tmp_path / "2.0.0", "digits", "2.0.0")
    shell("edgekit registry publish 2.0.0")
    state = shell.state()
    for name, site in (("pi-1", "north"), ("pi-2", "north"), ("pi-3", "west")):
        state.devices.enroll(Device(name, TARGET, "pem", {"site": site}, time.time()))
    running = {"digits": Running("a" * 64, "1.0.0", release=1, highest="1.0.0")}
    state.devices.save_report(Reported("pi-1", "f1", 1, 0.0, 1, running, {}), time.time())
    state.close()
    return shell


def test_a_list_is_filtered(shell: Shell) -> None:
    """By filter, label and target; they hold together."""
    for options, names in (
        ("--filter 'version(digits) < 2.0 and online'", ["pi-1"]),
        ("--filter 'label.site == north' --target raspberry-pi-4", ["pi-1", "pi-2"]),
        ("--label site=west", ["pi-3"]),
        ("--limit 2", ["pi-1", "pi-2"]),
        ("--limit 2 --after pi-2", ["pi-3"]),
    ):
        found = shell.json(f"edgekit device list --json {options}")
        assert [row["device"] for row in found] == names, options
    _, err = shell("edgekit device list --limit 2")
    assert "2 of 3 devices; the next page: --after pi-2" in err


def test_a_filter_that_does_not_parse_has_a_caret(shell: Shell) -> None:
    """Wrong usage, with the place, for every command."""
    for line in ("device list", "rollout start digits 2.0.0", "device command self-test", "device group save x"):
        option = "" if line.endswith("save x") else "--filter "
        _, err = shell(f"edgekit {line} {option}'label.site === north'", expect=2)
        shown = err.splitlines()
        at = next(index for index, text in enumerate(shown) if text.strip() == "^")
        assert shown[at - 1].strip() == "label.site === north"
        assert shown[at].index("^") - shown[at - 1].index("label") == len("label.site ==")
    _, err = shell("edgekit device list --filter 'group(nobody)'", expect=2)
    assert "there is no group 'nobody'" in err


def test_a_selection_that_matches_nobody_is_named(shell: Shell) -> None:
    """With the nearest labels; an empty fleet is told to enroll."""
    _, err = shell("edgekit rollout start digits 2.0.0 --label site=nort", expect=1)
    assert "no device of fleet 'f1' matches --label site=nort" in err
    assert "No device has label site 'nort'; there are north" in err
    _, err = shell("edgekit rollout start digits 2.0.0 --filter 'label.sites == north'", expect=1)
    assert "No device has a label sites; labels are site" in err
    _, err = shell("edgekit device list --target jetson-orin")
    assert "No device has target 'jetson-orin'; there are raspberry-pi-4" in err
    state = shell.state()
    with state._engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("DELETE FROM devices")
    state.close()
    _, err = shell("edgekit rollout start digits 2.0.0 --label site=nort", expect=1)
    assert "edgekit device enroll" in err


def test_a_rollout_keeps_its_filter_and_the_groups_of_its_time(shell: Shell) -> None:
    """Changing the group later changes neither the rollout nor its devices."""
    shell("edgekit device group save early 'label.site == north'")
    shell("edgekit rollout start digits 2.0.0 --waves 100% --filter 'group(early) and not waiting'")
    shell("edgekit device group save early 'label.site == west'")
    rollout = survey(shell)
    assert sorted(rollout.devices) == ["pi-1", "pi-2"]
    assert rollout.cohort.groups == {"early": "label.site == north"}
    assert shell.json("edgekit device group list --json")[0]["filter"] == "label.site == west"
    shell("edgekit device group remove early")
    assert sorted(survey(shell).devices) == ["pi-1", "pi-2"]


def test_a_command_goes_to_all_that_match(shell: Shell) -> None:
    """One command for each device; naming a device and a selection at once is wrong usage."""
    sent = shell.json("edgekit device command self-test --label site=north --json")
    assert [one["device"] for one in sent] == ["pi-1", "pi-2"]
    assert shell.json("edgekit device command pi-3 self-test --json")["device"] == "pi-3"
    shell("edgekit device command pi-3 self-test --label site=north", expect=2)
    shell("edgekit device command self-test", expect=2)
    shell("edgekit device command pi-3 reboot", expect=2)
    _, err = shell("edgekit device command self-test --label site=south", expect=1)
    assert "matches --label site=south" in err
