"""What `edgekit rollout` and `edgekit registry publish` say about versions, waits, late devices and unreadable rows."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from edgekit.mqtt.messages import Reported, Running, Waiting
from edgekit.rollout.plan import parse_waves
from edgekit.rollout.values import RolloutState
from tests.simulators.control import write_bundle
from tests.simulators.shell import Shell, enroll, report, survey


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    write_bundle(tmp_path / "2.0.0", "digits", "2.0.0")
    shell("edgekit registry publish 2.0.0")
    return shell


def seen(shell: Shell, number: int, received: float) -> None:
    """Let a controller look at ended rollouts, at that time."""
    state = shell.state()
    state.rollouts.watch_ended(received, 0.0)
    state.close()


def test_a_patch_of_an_old_line_is_announced_as_a_downgrade(shell: Shell) -> None:
    """`publish` warns, `--dry-run` lists who would refuse, and a rollout that all would refuse does not start."""
    write_bundle(shell.folder / "1.2.1", "digits", "1.2.1")
    for line in ("edgekit registry publish 1.2.1 --dry-run", "edgekit registry publish 1.2.1"):
        _, err = shell(line)
        assert "digits 1.2.1 for raspberry-pi-4 is lower than 2.0.0, which is published" in err
    enroll(shell, "pi-1", "pi-2")
    report(shell, "pi-1", 1, running=Running("a" * 64, "2.0.0", release=1, highest="2.0.0"))
    plan = shell.json("edgekit rollout start digits 1.2.1 --dry-run --json")
    assert plan["refusals"] == {"pi-1": "it has run 2.0.0, 1.2.1 is older, and no downgrade is requested"}
    assert plan["devices"] == 2
    report(shell, "pi-2", 1, running=Running("a" * 64, "2.0.0", release=1, highest="2.0.0"))
    _, err = shell("edgekit rollout start digits 1.2.1", expect=3)
    assert "every device would refuse digits 1.2.1, for example pi-1: it has run 2.0.0" in err
    assert "edgekit registry allow-downgrade digits 1.2.1" in err
    shell("edgekit registry allow-downgrade digits 1.2.1")
    assert shell.json("edgekit rollout start digits 1.2.1 --downgrade --dry-run --json")["refusals"] == {}
    report(shell, "pi-2", 2, running=Running())
    _, err = shell("edgekit rollout start digits 1.2.1")
    assert "pi-1 will refuse it: it has run 2.0.0" in err
    assert "lower than" not in shell("edgekit registry publish 2.0.0")[1]


def test_waves_of_mixed_units_are_checked_against_the_fleet(shell: Shell) -> None:
    """Waves that fall for this fleet are wrong usage, before anything is started."""
    enroll(shell, *(f"pi-{index}" for index in range(4)))
    _, err = shell("edgekit rollout start digits 2.0.0 --waves 75%,2,100%", expect=2)
    assert "of 4 devices 75% are 3 and 2 are 2" in err
    shell("edgekit rollout start digits 2.0.0 --waves 2,75%,100%")


@pytest.mark.parametrize(
    "options",
    ["--device-deadline inf", "--device-deadline nan", "--max-wait inf", "--error-threshold nan", "--min-failures -1"],
)
def test_odd_numbers_are_wrong_usage(shell: Shell, options: str) -> None:
    """Nothing is stored, and the next rollout starts."""
    enroll(shell, "pi-1")
    shell(f"edgekit rollout start digits 2.0.0 {options}", expect=2)
    assert shell.json("edgekit rollout list --json") == []
    for number in (2**63, 2**31, 0):
        shell(f"edgekit rollout status {number}", expect=2)
        shell(f"edgekit rollout abort {number}", expect=2)
    shell("edgekit device command pi-1 self-test --expires nan", expect=2)
    shell("edgekit rollout start digits 2.0.0 --device-deadline 15m --max-wait 7d")
    assert survey(shell).plan.max_wait_seconds == 604_800


def test_a_row_that_an_earlier_release_spoiled_is_shown_and_can_be_aborted(shell: Shell) -> None:
    """`--device-deadline inf` was stored as null once; now such a rollout is listed, and ends by an abort."""
    enroll(shell, "pi-1")
    shell("edgekit rollout start digits 2.0.0")
    state = shell.state()
    with state._engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("UPDATE rollouts SET body = replace(body, '600.0', 'null')")
    state.close()
    out, _ = shell("edgekit rollout list")
    assert "RUNNING (unreadable)" in out
    assert "device_deadline_seconds" in shell.json("edgekit rollout status 1 --json")["unreadable"]
    _, err = shell("edgekit rollout watch", expect=3)
    assert "edgekit rollout abort 1" in err
    _, err = shell("edgekit rollout pause 1", expect=3)
    assert "edgekit rollout abort 1" in err
    assert shell.json("edgekit rollout abort 1 --json")["state"] == "ABORTED"
    shell("edgekit rollout start digits 2.0.0")


def test_status_says_who_waits_and_since_when(shell: Shell) -> None:
    """A device in its quiet hours is shown as waiting, with the reason and the time."""
    enroll(shell, "pi-1")
    shell("edgekit rollout start digits 2.0.0")
    digest = survey(shell).devices["pi-1"].digest
    report(shell, "pi-1", 1, running=Running(waiting=Waiting("quiet-hours", 5.0, digest)))
    survey(shell)
    out, _ = shell("edgekit rollout status")
    assert "pi-1  WAITING    quiet-hours, since 20" in out
    assert "1 waiting" in out
    assert shell.json("edgekit rollout status --json")["counts"]["WAITING"] == 1


def test_status_of_an_ended_rollout_shows_what_happened_later(shell: Shell) -> None:
    """The decision keeps its counts; the device shows both states with their times."""
    enroll(shell, "pi-1")
    shell("edgekit rollout start digits 2.0.0 --success-threshold 0 --error-threshold 1 --device-deadline 1")
    digest = survey(shell).devices["pi-1"].digest
    time.sleep(1.1)
    assert survey(shell).state is RolloutState.FINISHED
    report(shell, "pi-1", 1, digest=digest)
    seen(shell, 1, time.time())
    out, _ = shell("edgekit rollout status")
    assert "is FINISHED since 20" in out
    assert "at that time 1 failed" in out
    assert "1 succeeded (1 late)" in out
    assert "succeeded late, reported 20" in out
    assert "(was FAILED 20" in out
    device = shell.json("edgekit rollout status --json")["devices"]["pi-1"]
    assert (device["state"], device["late"], device["verdict"]["state"]) == ("SUCCEEDED", True, "FAILED")


def test_a_device_that_activated_before_the_abort_is_shown_so(shell: Shell) -> None:
    """It runs the bundle, and nothing about it reads like a refused downgrade."""
    enroll(shell, "pi-1")
    shell("edgekit rollout start digits 2.0.0")
    digest = survey(shell).devices["pi-1"].digest
    shell("edgekit rollout abort 1")
    report(shell, "pi-1", 1, digest=digest)
    seen(shell, 1, time.time())
    out, _ = shell("edgekit rollout status")
    assert "activated before the abort, reported 20" in out
    assert "(was ASSIGNED 20" in out
    shown = shell.json("edgekit device show pi-1 --json")
    assert shown["assigned"]["entries"]["digits"]["sha256"] == digest


def test_times_that_no_calendar_has_are_dashes(shell: Shell) -> None:
    """A device that reports an absurd time does not stop a command."""
    enroll(shell, "pi-1")
    state = shell.state()
    said = Reported("pi-1", "f1", 1, 1e300, 1, {"digits": Running("a" * 64, "2.0.0", 1e300)}, {})
    state.devices.save_report(said, 1.0)
    state.close()
    shell("edgekit device show pi-1")
    shell("edgekit device list")


def test_gates_are_options_and_their_evidence_is_shown(shell: Shell) -> None:
    """Bad gates are wrong usage; `status` shows the evidence to people and as JSON."""
    enroll(shell, "pi-1")
    _, err = shell("edgekit rollout start digits 2.0.0 --gate 'outcome rise <= 0.1'", expect=2)
    assert "write 'outcome drop <= 0.1'" in err
    _, err = shell("edgekit rollout start digits 2.0.0 --gate latency", expect=2)
    assert "devices count answers slower than 1, 2, 5" in err
    shell("edgekit rollout start digits 2.0.0 --gate outcome --gate 'latency 50ms rise <= 0.1' --soak 2h")
    out, _ = shell("edgekit rollout status")
    assert "gate 'outcome drop <= 0': no device has reported observations of both models yet" in out
    first, second = shell.json("edgekit rollout status --json")["gates"]
    assert (first["pairs"], first["evidence"], second["gate"]) == (0, 1.0, "latency 50ms rise <= 0.1")


def test_a_rollout_has_a_rate_that_rises_with_its_waves(shell: Shell) -> None:
    """Odd numbers are wrong usage; `status` shows the rate of the wave."""
    enroll(shell, "pi-1", "pi-2")
    for wrong in ("--per-hour nan", "--per-hour inf", "--per-hour -1", "--per-hour 1e-9", "--ramp 2"):
        shell(f"edgekit rollout start digits 2.0.0 {wrong}", expect=2)
    shell("edgekit rollout start digits 2.0.0 --per-hour 6 --ramp 3 --waves 100%")
    assert sum(bool(one.assigned_at) for one in survey(shell).devices.values()) == 1
    out, _ = shell("edgekit rollout status")
    assert "wave 1 of 1 (100%), at most 6 devices an hour; 1 pending, 1 assigned" in out


def test_a_control_cohort_is_an_option_of_gates(shell: Shell) -> None:
    """Without a gate it is wrong usage; a fleet that is too small for it says so."""
    enroll(shell, "pi-1")
    _, err = shell("edgekit rollout start digits 2.0.0 --control cohort", expect=2)
    assert "a control cohort needs a gate" in err
    _, err = shell("edgekit rollout start digits 2.0.0 --gate outcome --control cohort --waves 100%", expect=2)
    assert "needs a wave before that of 100%" in err
    shell("edgekit rollout start digits 2.0.0 --gate outcome --control cohort --soak 2h")
    survey(shell)
    out, _ = shell("edgekit rollout status")
    assert "no control cohort from wave 1 on: 0 devices of later waves run the old version" in out
    (gate,) = shell.json("edgekit rollout status --json")["gates"]
    assert gate["control"] == {"pairs": 0, "devices": 0, "baseline": 0.0, "candidate": 0.0, "alone": 0}


def test_a_rollout_that_returns_devices_asks_whether_they_can_return(shell: Shell) -> None:
    """The version that is assigned now must be one that its publisher allows to go back to."""
    enroll(shell, "pi-1")
    shell("edgekit rollout start digits 2.0.0")
    digest = survey(shell).devices["pi-1"].digest
    report(shell, "pi-1", 1, running=Running(digest, "2.0.0", release=1, highest="2.0.0"))
    assert survey(shell).state is RolloutState.FINISHED
    write_bundle(shell.folder / "2.1.0", "digits", "2.1.0")
    shell("edgekit registry publish 2.1.0")
    _, err = shell("edgekit rollout start digits 2.1.0 --on-failure return", expect=3)
    assert "devices could not return to digits 2.0.0" in err
    assert "edgekit registry allow-downgrade digits 2.0.0" in err
    shell("edgekit registry allow-downgrade digits 2.0.0")
    shell("edgekit rollout start digits 2.1.0 --on-failure return")


def test_canaries_wait_for_an_approval_and_one_device_leaves(shell: Shell) -> None:
    """The first wave has as many devices as match; a filter that matches nobody starts nothing."""
    enroll(shell, "pi-1", "pi-2", "pi-3")
    start = "edgekit rollout start digits 2.0.0 --waves 100%"
    _, err = shell(f"{start} --canaries 'name == pi-9'", expect=1)
    assert "no device of the rollout matches the canaries, --filter 'name == pi-9'" in err
    shell(f"{start} --canaries 'name in (pi-2, pi-3)' --approval start")
    assert survey(shell).counts()["TOLD"] == 0
    out, _ = shell("edgekit rollout status 1")
    assert "the next wave waits for: edgekit rollout approve 1" in out
    assert "waits for: edgekit rollout approve 1" in shell("edgekit rollout list")[0]
    planned = shell.json("edgekit rollout approve 1 --dry-run --json")
    assert sorted(planned["tell"]) == ["pi-2", "pi-3"]
    shell("edgekit rollout approve 1")
    assert "waits for" not in shell("edgekit rollout list")[0]
    _, err = shell("edgekit rollout approve 1", expect=3)
    assert "no wave of rollout 1 waits for an approval" in err
    shell("edgekit rollout cancel 1 pi-2")
    states = {name: one["state"] for name, one in shell.json("edgekit rollout status --json")["devices"].items()}
    assert (states["pi-2"], states["pi-3"]) == ("CANCELLED", "TOLD")
    changes = [entry["what"] for entry in shell.json("edgekit audit list --what rollout --json")]
    assert {"rollout.approve", "rollout.cancel", "rollout.start"} <= set(changes)


def test_a_fleet_is_paused_once(shell: Shell) -> None:
    """A second pause is refused, and status has the reason."""
    status = shell.json("edgekit fleet status --json")
    assert status == {"paused": False, "reason": "", "since": 0.0, "controllers": []}
    shell("edgekit fleet pause --reason 'broker moves'")
    assert "is paused: broker moves" in shell("edgekit fleet status")[1]
    assert "already paused" in shell("edgekit fleet pause", expect=3)[1]
    shell("edgekit fleet resume")
    assert "is not paused" in shell("edgekit fleet resume", expect=3)[1]


def test_waves_by_filter_and_by_list_of_names(shell: Shell) -> None:
    """The dry run has the filters with the devices that they add; a wave that adds nobody starts nothing."""
    enroll(shell, "pi-1", "pi-2", "pi-3", "pi-4")
    shell("edgekit device label pi-3 ring=0")
    waves = "label.ring == 0, name in (pi-2, pi-3, pi-4), 100%"
    out, _ = shell(f"edgekit rollout start digits 2.0.0 --waves '{waves}' --dry-run")
    assert re.search(r"1 +label\.ring == 0 +1\n", out)
    assert re.search(r"2 +name in \(pi-2, pi-3, pi-4\) +3\n", out)
    _, err = shell("edgekit rollout start digits 2.0.0 --waves 'label.ring == 7, 100%'", expect=1)
    assert "no device of the rollout is in the wave label.ring == 7" in err
    _, err = shell("edgekit rollout start digits 2.0.0 --waves 'label.ring = 0, 100%'", expect=2)
    assert "^" in err
    shell(f"edgekit rollout start digits 2.0.0 --waves '{waves}'")
    told = [name for name, one in survey(shell).devices.items() if one.state.value == "TOLD"]
    assert told == ["pi-3"]
    assert shell.json("edgekit rollout status --json")["waves"] == [wave.text for wave in parse_waves(waves)]


def test_a_comparison_needs_agents_that_can_make_it(shell: Shell) -> None:
    """A fleet of older agents is refused; in a mixed one, the dry run and the start name them."""
    enroll(shell, "pi-1", "pi-2")
    start = "edgekit rollout start digits 2.0.0 --shadow 50 --gate agreement:0.9"
    _, err = shell(start, expect=3)
    assert "none of 2 devices can compare" in err
    state = shell.state()
    state.devices.save_report(Reported("pi-1", "f1", 1, 1.0, 1, {}, {}, facts={"edgekit": "0.2.0"}), time.time())
    state.close()
    _, err = shell(f"{start} --dry-run")
    assert "1 device cannot compare and will get it last: pi-2" in err
    assert shell.json(f"{start} --dry-run --json")["unable"] == ["pi-2"]
    _, err = shell("edgekit rollout start digits 2.0.0 --gate agreement", expect=2)
    assert "needs --shadow" in err
    shell(start)
    rollout = survey(shell)
    assert [name for name, one in rollout.devices.items() if one.shadowing] == ["pi-1"]
    state = shell.state()
    entries = state.assignments.get("pi-1").entries
    assert (entries["digits"].shadow, entries["digits"].shadow_seconds) == (50, 86_400)
    state.close()
    out, _ = shell("edgekit rollout status")
    assert "pi-1  ASSIGNED   compares 50 inputs" in out
