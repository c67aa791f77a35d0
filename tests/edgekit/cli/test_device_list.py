"""`edgekit device list` by order, page and columns; `edgekit rollout watch` in as many lines as the terminal has."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.cli.rollout.live import ASCII, live_lines
from edgekit.mqtt.messages import Outcome, Reported, Running
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout, RolloutState
from tests.simulators.shell import Shell, enroll, report


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    enroll(shell, "pi-1", "pi-2")
    shell("edgekit device enroll pi-3 --target x86-64 --label site=north")
    report(shell, "pi-2", 1, digest="a" * 64)
    return shell


def names(shell: Shell, options: str) -> list[str]:
    return [view["device"] for view in shell.json(f"edgekit device list {options} --json")]


def test_devices_are_listed_in_any_order_page_by_page(shell: Shell) -> None:
    """Equal ones by name; the note says how the next page is asked for."""
    assert names(shell, "--sort -name") == ["pi-3", "pi-2", "pi-1"]
    assert names(shell, "--sort -seen") == ["pi-2", "pi-1", "pi-3"]
    assert names(shell, "--sort target --offset 1") == ["pi-2", "pi-3"]
    assert names(shell, "--sort -seen --limit 1 --offset 1") == ["pi-1"]
    assert "the next page: --offset 2" in shell("edgekit device list --sort -seen --limit 2")[1]
    assert "the next page: --after pi-2" in shell("edgekit device list --limit 2")[1]
    assert "next page" not in shell("edgekit device list --limit 2 --after pi-2")[1]
    assert "next page" not in shell("edgekit device list --limit 3")[1]
    for beyond in ("--after pi-9", "--offset 5"):
        assert "No device is on this page; the list has 3 devices." in shell(f"edgekit device list {beyond}")[1]


def test_columns_are_chosen_and_keyed_ones_reach_into_reports(shell: Shell) -> None:
    """A dash stands for no value."""
    out, _ = shell("edgekit device list --columns device,label.site,version(digits),fact.cores")
    assert [line.split() for line in out.splitlines()] == [
        ["device", "label.site", "version(digits)", "fact.cores"],
        ["pi-1", "-", "-", "-"],
        ["pi-2", "-", "1.0.0", "-"],
        ["pi-3", "north", "-", "-"],
    ]


def test_columns_have_the_names_of_filters(shell: Shell) -> None:
    """Parts of facts, and how a model's last deployment ended."""
    facts = {"runtimes": {"litert": "2.1.0"}, "accelerators": ["coral-edgetpu"], "clock_synchronised": True}
    state = shell.state()
    outcome = Outcome("b" * 64, "1.1.0", "refused", "SelfTestError", "wrong answers", 5.0)
    said = Reported("pi-2", "f1", 2, 0.0, 1, {"digits": Running("a" * 64, "1.0.0")}, {"digits": outcome}, facts)
    state.devices.save_report(said, time.time())
    state.close()
    columns = "fact.runtimes.litert,fact.accelerators.coral-edgetpu,fact.clock_synchronised,state(digits)"
    out, _ = shell(f"edgekit device list --filter 'name == pi-2' --columns {columns},outcome(digits)")
    assert out.splitlines()[1].split() == ["2.1.0", "true", "true", "IDLE", "refused"]
    out, _ = shell(f"edgekit device list --filter 'name == pi-1' --columns {columns},outcome(digits)")
    assert out.splitlines()[1].split() == ["-"] * 5


def test_unknown_columns_and_orders_are_wrong_usage(shell: Shell) -> None:
    """The error names the nearest."""
    assert "Did you mean 'target'" in shell("edgekit device list --columns device,targt", expect=2)[1]
    assert "Did you mean 'seen'" in shell("edgekit device list --sort sen", expect=2)[1]
    assert "--offset" in shell("edgekit device list --sort seen --after pi-1", expect=2)[1]


def test_a_large_rollout_fits_the_terminal() -> None:
    """Its waves fill, the time left is estimated, and some of the devices that need a look are named."""
    plan = RolloutPlan(parse_waves("10%,50%,100%"))
    devices = {}
    for index in range(3000):
        wave = 0 if index < 300 else 1
        state = DeviceState.SUCCEEDED if index < 900 else DeviceState.FAILED if index < 960 else DeviceState.ASSIGNED
        begun = 1000.0 if wave == 0 else 1600.0
        if index < 1500:
            devices[f"pi-{index:04}"] = DeviceProgress(state, "d", begun, wave, "wrong\x1b[31m", at=begun + 9.0)
        else:
            devices[f"pi-{index:04}"] = DeviceProgress(DeviceState.PENDING)
    rollout = Rollout(7, "m", "1.0.0", plan=plan, state=RolloutState.RUNNING, wave=1, devices=devices)
    lines = live_lines(rollout, 1900.0, height=24, signs=ASCII)
    assert len(lines) < 24
    assert lines[0] == "rollout 7 of m 1.0.0 is RUNNING, about 15 min left"
    assert lines[1] == "  wave 1   10%  " + "#" * 30 + "  300 of 300 succeeded"
    assert lines[2] == "> wave 2   50%  " + "#" * 15 + "=" * 14 + "." + "  600 of 1200 succeeded"
    assert lines[3] == "  wave 3  100%  " + "." * 30 + "  0 of 1500 succeeded"
    assert lines[4] == "1,500 pending, 540 assigned, 900 succeeded, 60 failed"
    assert lines[5] == "  pi-0900  FAILED       wrong\\x1b[31m"
    assert lines[-1] == "  and 43 more; all: edgekit rollout status 7"
