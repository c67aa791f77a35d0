"""`edgekit controller run` serves API and pages; `edgekit controller token` says who may use them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from edgekit.cli.controller.web import parse_api
from edgekit.errors import SettingsError
from tests.simulators.receiver import receiver
from tests.simulators.shell import Shell


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\nbroker = "mqtt://127.0.0.1:9"\n')
    return Shell(tmp_path, monkeypatch, capfd)


@contextlib.contextmanager
def controller(folder: Path, api: str):
    """A controller process, ended with the block."""
    command = [sys.executable, "-m", "edgekit", "controller", "run"]
    environment = {**os.environ, "EDGEKIT_API": api}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30.0)


def until_running(shell: Shell) -> None:
    end = time.monotonic() + 60.0
    while not shell.json("edgekit fleet status --json")["controllers"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def line_with(process: subprocess.Popen, words: str) -> str:
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"the controller ended without a line with {words!r}")


def test_a_second_controller_of_a_sqlite_database_is_refused(shell: Shell) -> None:
    """It ends at once and says what to do; the first one works on."""
    shell("edgekit registry init")
    with controller(shell.folder, "") as first:
        until_running(shell)
        with controller(shell.folder, "") as second:
            assert "serves only one" in line_with(second, "another controller")
            assert second.wait(30.0) == 3
        assert first.poll() is None
        (one,) = shell.json("edgekit fleet status --json")["controllers"]
        assert one["leads"]
    assert shell.json("edgekit fleet status --json")["controllers"] == []
    assert "no controller" in shell("edgekit fleet status")[1]


def test_a_controller_serves_its_api_and_leaves_the_address_to_the_next(shell: Shell) -> None:
    """Without a broker too. One of another fleet on the same address says so, works on, and takes it over."""
    shell("edgekit registry init")
    other = shell.folder / "other"
    shutil.copytree(shell.folder / "keys", other / "keys")
    shutil.copytree(shell.folder / "registry", other / "registry")
    shutil.copy(shell.folder / "edgekit.toml", other)
    token = shell("edgekit controller token add ann --role admin")[0].strip()
    with controller(shell.folder, "127.0.0.1:0") as first:
        url = line_with(first, "API and pages:").rpartition(" ")[2].strip()
        request = urllib.request.Request(f"{url}/api/v1/operators", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request) as reply:
            assert [one["name"] for one in json.load(reply)] == ["ann"]
        with controller(other, url.removeprefix("http://")) as second:
            assert "Address already in use; trying again" in line_with(second, "the API is not served")
            first.send_signal(signal.SIGTERM)
            assert first.wait(30.0) == 0
            assert url in line_with(second, "API and pages:")
            with urllib.request.urlopen(f"{url}/") as reply:
                assert b"No device is enrolled yet" in reply.read()
        assert second.returncode == 0


def test_tokens_are_made_listed_and_removed(shell: Shell) -> None:
    """The token alone is on stdout; the list has none."""
    out, err = shell("edgekit controller token add ann --role operator")
    assert out.startswith("ekop_")
    assert "role operator" in err
    made = shell.json("edgekit controller token add bob --json")
    assert (made["name"], made["role"]) == ("bob", "viewer")
    out, _ = shell("edgekit controller token list")
    assert "ann   operator" in out
    assert "ekop_" not in out
    shell("edgekit controller token remove ann")
    assert [one["name"] for one in shell.json("edgekit controller token list --json")] == ["bob"]
    shell("edgekit controller token remove ann", expect=1)
    shell("edgekit controller token add carl --role king", expect=2)


def test_webhooks_are_made_listed_served_and_removed(shell: Shell) -> None:
    """A controller posts what happens from then on; the secret alone is on stdout, and in no list."""
    shell("edgekit registry init")
    with receiver() as server:
        out, err = shell(f"edgekit controller webhook add {server.url} --kind audit")
        assert out.startswith("whsec_")
        assert "webhook 1 is told of audit" in err
        _, err = shell(f"edgekit controller webhook add {server.url} --kind alarm", expect=3)
        assert "webhook 1 posts audit to" in err
        shell("edgekit device enroll pi-1 --target raspberry-pi-4")
        (waiting,) = shell.json("edgekit controller webhook list --json")
        assert (waiting["pending"], waiting["kinds"]) == (1, ["audit"])
        assert "whsec" not in str(waiting)
        with controller(shell.folder, ""):
            end = time.monotonic() + 60.0
            while not server.got:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert json.loads(server.got[0][1])["kind"] == "device.enroll"
    shell("edgekit device label pi-1 site=a")
    assert shell.json("edgekit controller webhook skip 1 --json")["kind"] == "device.label"
    shell("edgekit controller webhook remove 1")
    assert shell.json("edgekit controller webhook list --json") == []
    shell("edgekit controller webhook remove 1", expect=1)
    shell("edgekit controller webhook add ftp://example.com/", expect=2)


@pytest.mark.parametrize("text", ["8800", "localhost", ":8800", "a:b", "a:99999", "a:-1"])
def test_an_address_is_host_and_port(shell: Shell, text: str) -> None:
    """A malformed one stops the controller before it does anything."""
    with pytest.raises(SettingsError, match="expected host:port"):
        parse_api(text)


def test_addresses() -> None:
    """IPv4, names and IPv6."""
    assert parse_api("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_api("Fleet.example:8800") == ("fleet.example", 8800)
    assert parse_api("[::1]:8800") == ("::1", 8800)
