"""Notifications to systemd, read from a socket like systemd's."""

import asyncio
import os
import signal
import socket
import subprocess

import pytest

from device_agents.systemd import Notifier
from tests.device_agents.test_main import AGENT, ENV, folder, install  # noqa: F401


@pytest.fixture
def manager(tmp_path):
    """A service manager's end, and the name that a service is given for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(120)
        yield end, str(tmp_path / "notify")


async def fail(notifier):
    async with notifier.running("serving"):
        await asyncio.sleep(0.1)
        raise RuntimeError("the work failed")


async def test_a_running_loop_says_that_it_is_alive(manager):
    """Ready first, then signs of life from the event loop, stopping at last, also when the work failed."""
    end, path = manager
    with pytest.raises(RuntimeError, match="the work failed"):
        await fail(Notifier(path, 0.15))
    said = [end.recv(200).decode()]
    while said[-1] != "STOPPING=1":
        said.append(end.recv(200).decode())
    assert said[0] == "READY=1\nSTATUS=serving"
    assert set(said[1:-1]) == {"WATCHDOG=1"}


def test_an_abstract_name_is_reached(tmp_path):
    """`@name` is a name that begins with a zero byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{tmp_path}")
        end.settimeout(60)
        Notifier(f"@{tmp_path}").notify("READY=1")
        assert end.recv(100) == b"READY=1"


def test_children_do_not_inherit_the_managers_socket():
    """The variables are removed from the environment; the watchdog of another process is ignored."""
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    assert Notifier.take(environment).watchdog_seconds == 60.0
    assert environment == {"A": "b"}
    assert Notifier.take({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}).watchdog_seconds == 0.0
    assert Notifier.take({"WATCHDOG_USEC": "soon"}).watchdog_seconds == 0.0


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_elsewhere_nothing_is_told(address, tmp_path, monkeypatch, caplog):
    """Without systemd, and with an address of another family, nothing is sent: not to a file of that name either."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(address or "nobody")
        end.setblocking(False)
        Notifier.take({"NOTIFY_SOCKET": address}).notify("READY=1")
        with pytest.raises(BlockingIOError):
            end.recv(100)
    assert caplog.records == []  # an attempt that failed would have been logged


def test_a_manager_that_is_gone_is_no_reason_to_end(tmp_path, caplog):
    """The failure is logged, once for each message."""
    Notifier(str(tmp_path / "nobody")).notify("READY=1\nSTATUS=x")
    assert "was not notified of READY=1" in caplog.text


def test_the_agent_is_ready_when_what_is_installed_answers(folder, manager):  # noqa: F811
    """The agent as a process with systemd's variables: ready, alive, and stopping on SIGTERM."""
    install(folder)
    end, path = manager
    command = [*AGENT, "run", "--config", str(folder / "agent.toml")]
    env = {**ENV, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        try:
            assert end.recv(300).startswith(b"READY=1\nSTATUS=ready at http://127.0.0.1:")
            assert "ready at" in child.stdout.readline()
            assert end.recv(300) == b"WATCHDOG=1"
            child.send_signal(signal.SIGTERM)
            assert end.recv(300) == b"STOPPING=1"
            assert child.wait(120) == 0
        finally:
            child.kill()
