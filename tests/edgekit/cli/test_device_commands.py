"""`edgekit device command` and `edgekit device results`: words, arguments, tables and late answers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from edgekit.mqtt.messages import Result
from tests.simulators.control import write_bundle
from tests.simulators.shell import TARGET, Shell, enroll


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    write_bundle(tmp_path / "b", "digits", "1.0.0")
    shell("edgekit registry publish b")
    enroll(shell, "pi-1", "pi-2")
    return shell


def answer(shell: Shell, device: str, number: int, *, ok: bool = True, message: str = "", **detail: object) -> bool:
    state = shell.state()
    stored = state.commands.save_result(Result(device, number, ok, message, detail))
    state.close()
    return stored


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("pi-1 set", "changes nothing"),
        ("pi-1 set threads", "not of the form KEY=VALUE"),
        ("pi-1 set =2", "not of the form KEY=VALUE"),
        ("pi-1 set metered=maybe", "metered cannot be 'maybe': Expected `bool`"),
        ("pi-1 set threads=2 heartbeat_seconds=inf", "heartbeat_seconds is inf, expected 1 to 86400"),
        ("pi-1 set cloud_url=http://x", "cannot be set remotely"),
        ("pi-1 profile digits", "needs a model and its version"),
        ("pi-1 logs now", "takes no words"),
        ("pi-1 logs --seconds 3", "--seconds belongs to profile"),
        ("pi-1 set threads=2 --lines 3", "--lines belongs to logs"),
        ("pi-1 collect now", "takes no words"),
        ("pi-1 logs --samples 3", "--samples belongs to collect"),
        ("pi-1 set threads=2 --reason unsure", "--reason belongs to collect"),
        ("pi-1 collect --lines 3", "--lines belongs to logs"),
        ("pi-1 collect --share nan", "not a finite number"),
        ("pi-1 collect --during 32d", "not in the range"),
        ("pi-1 collect --reason random", "is not one of"),
        ("pi-1 restart --no-restart", "--no-restart belongs to set"),
        ("pi-1 reboot", "is no command"),
        ("logs", "Name one device"),
        (f"pi-1 logs --target {TARGET}", "Name one device"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_sent(shell: Shell, line: str, says: str) -> None:
    """Exit 2 and the reason."""
    _, err = shell(f"edgekit device command {line}", expect=2)
    assert says in err
    assert shell.json("edgekit device results --json") == []


def test_a_dry_run_names_the_devices_and_sends_nothing(shell: Shell) -> None:
    """With who is offline; the same as JSON."""
    _, err = shell(f"edgekit device command restart --target {TARGET} --dry-run")
    assert "restart would be sent to 2 devices: pi-1, pi-2" in err
    assert "offline now, so they get it only if they come back in time: pi-1, pi-2" in err
    (plan,) = shell.json("edgekit device command pi-2 set threads=2 --dry-run --json")
    assert plan == {
        "device": "pi-2",
        "online": False,
        "kind": "set",
        "args": {"values": {"threads": "2"}, "restart": True},
    }
    assert shell.json("edgekit device results --json") == []


def test_arguments_are_stored_as_the_device_gets_them(shell: Shell) -> None:
    """A profiled bundle is the one that the registry has for the device's target."""
    sent = shell.json("edgekit device command pi-1 set threads=2 quiet_hours= --json")
    assert sent["args"] == {"values": {"threads": "2", "quiet_hours": ""}, "restart": True}
    sent = shell.json("edgekit device command pi-1 set threads=2 --no-restart --json")
    assert sent["args"]["restart"] is False
    assert shell.json("edgekit device command pi-1 logs --lines 7 --json")["args"] == {"lines": 7}
    collect = "edgekit device command pi-1 collect --samples 9 --during 2h --reason unsure --share 0.5 --model digits"
    wanted = {"samples": 9, "seconds": 7200.0, "reasons": ["unsure"], "share": 0.5, "model": "digits"}
    assert shell.json(f"{collect} --json")["args"] == wanted
    assert shell.json("edgekit device command pi-1 collect --json")["args"] == {}
    by_chance = shell.json("edgekit device command pi-1 collect --samples 9 --share 0.5 --json")["args"]
    assert by_chance == {"samples": 9, "share": 0.5, "reasons": []}, "devices of every version take no hard ones then"
    assert "reasons" not in shell.json("edgekit device command pi-1 collect --samples 9 --share 0 --json")["args"]
    sent = shell.json("edgekit device command pi-1 profile digits 1.0.0 --seconds 2 --json")
    assert (sent["args"]["target"], sent["args"]["seconds"], len(sent["args"]["digest"])) == (TARGET, 2.0, 64)
    assert sent["expires"] - sent["created"] == pytest.approx(600)
    _, err = shell("edgekit device command pi-1 profile digits 9.9.9", expect=1)
    assert "has no version 9.9.9" in err


def test_results_are_a_table_and_late_answers_count(shell: Shell) -> None:
    """An answer after the end of waiting is still the device's answer; a second one is not."""
    first, second = shell.json(f"edgekit device command logs --target {TARGET} --expires 1 --json")
    time.sleep(1.1)
    state = shell.state()
    state.commands.to_send(time.time())
    state.close()
    assert answer(shell, "pi-1", first["number"], message="1 line(s)", lines=["late \x1b[31m"])
    assert not answer(shell, "pi-1", first["number"], ok=False, message="again")
    out, _ = shell("edgekit device results")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[0], row[2], row[5]) for row in rows] == [("pi-2", "logs", "no"), ("pi-1", "logs", "passed")]
    out, _ = shell(f"edgekit device results pi-1 --number {first['number']}")
    assert out.splitlines() == ["pi-1: logs passed: 1 line(s)", r"late \x1b[31m"]
    assert shell.json("edgekit device results pi-2 --kind logs --json")[0]["number"] == second["number"]
    _, err = shell("edgekit device results pi-2 --number 5", expect=1)
    assert "pi-2 has no command 5" in err
    shell("edgekit device results --number 5", expect=2)


def test_a_failed_answer_fails_the_command(shell: Shell) -> None:
    """With the device's own words; the table has every device."""

    def soon() -> None:
        state = shell.state()
        while len(found := state.commands.latest()) < 2:
            time.sleep(0.02)
        for one in found:
            state.commands.save_result(Result(one.device, one.number, one.device == "pi-1", f"says {one.device}"))
        state.close()

    device = threading.Thread(target=soon)
    device.start()
    out, err = shell(f"edgekit device command restart --target {TARGET} --wait", expect=1)
    device.join()
    assert "pi-2: restart failed: says pi-2" in err
    assert [line.split()[0] + " " + line.split()[2] for line in out.splitlines()[1:]] == ["pi-1 passed", "pi-2 failed"]


def test_profile_on_a_device_needs_the_published_bundle(shell: Shell, tmp_path: Path) -> None:
    """One place, a bundle, and the same bundle in the registry."""
    shell("edgekit profile b", expect=2)
    shell("edgekit profile b --on host --device pi-1", expect=2)
    assert "is not a bundle" in shell("edgekit profile none --device pi-1", expect=1)[1]
    write_bundle(tmp_path / "other", "digits", "1.0.0", model=b"other")
    assert "Publish this bundle under another version" in shell("edgekit profile other --device pi-1", expect=1)[1]
    write_bundle(tmp_path / "new", "digits", "1.1.0")
    assert "has no version 1.1.0" in shell("edgekit profile new --device pi-1", expect=1)[1]
    _, err = shell("edgekit profile b --device pi-1 --expires 1", expect=1)
    assert "pi-1 did not answer profile within 1 s" in err
