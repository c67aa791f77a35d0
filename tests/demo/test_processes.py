"""The demo waits for its child processes and always ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgekit.demo.processes import CommandError, Processes, stop_kept
from edgekit.errors import EdgekitError, UnavailableError

SERVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.fixture
def server(tmp_path: Path) -> str:
    (tmp_path / "server.py").write_text(SERVER)
    return "python server.py"


def test_a_command_gives_its_output_and_its_status_is_checked(tmp_path: Path) -> None:
    """The expected exit status passes; another one is an error with the end of stderr."""
    processes = Processes(tmp_path)
    assert processes.run("python -c 'print(6*7)'") == "42\n"
    processes.run("python -c 'raise SystemExit(3)'", expect=3)
    with pytest.raises(CommandError, match="exited 1, expected 0:\nbroken"):
        processes.run("""python -c 'import sys; sys.exit("broken")'""")


def test_stopping_ends_a_server_and_its_children(tmp_path: Path, server: str) -> None:
    """The whole group ends, not only the process that was started."""
    processes = Processes(tmp_path)
    child = int(processes.start("server", server, ready="ready").split()[1])
    assert alive(child)
    processes.stop_all()
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
    assert processes.names == []


def test_a_server_that_ends_before_it_is_ready_is_an_error_with_its_log(tmp_path: Path) -> None:
    """The error contains the end of the server's log."""
    with pytest.raises(UnavailableError, match="no port for me"):
        Processes(tmp_path).start("server", "python -c 'print(\"no port for me\")'", ready="ready")


def test_a_kept_demo_can_be_stopped_by_its_folder(tmp_path: Path, server: str) -> None:
    """Only processes whose working folder is the demo's are ended; a foreign process id is left alone."""
    processes = Processes(tmp_path)
    processes.start("server", server, ready="ready")
    text = (tmp_path / "processes.json").read_text()
    (tmp_path / "processes.json").write_text(text.replace("}", f', "foreign": {os.getpid()}}}'))
    assert stop_kept(tmp_path) == ["server"]
    with pytest.raises(EdgekitError, match="holds no kept demo"):
        stop_kept(tmp_path / "elsewhere")


def test_the_environment_of_the_caller_cannot_redirect_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Child processes do not get the caller's EDGEKIT_ variables."""
    monkeypatch.setenv("EDGEKIT_REGISTRY", "s3://somebody/elses")
    code = "import os; print(os.environ.get('EDGEKIT_REGISTRY'))"
    assert Processes(tmp_path).run(f'{Path(sys.executable).name} -c "{code}"') == "None\n"


def test_commands_in_the_background_end_with_the_demo(tmp_path: Path) -> None:
    """Stopping ends a command that runs in another thread, and no later command or server starts."""
    processes = Processes(tmp_path)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(processes.run, 'python -c \'import time; open("begun", "w"); time.sleep(600)\'')
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        processes.stop_all()
        with pytest.raises(CommandError, match="exited -15"):
            running.result(60)
    for late in (lambda: processes.run("python -c 1"), lambda: processes.start("late", "python -c 1", ready="x")):
        with pytest.raises(CommandError, match="the demo ends"):
            late()
    assert processes.names == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Interrupts as in a terminal: tests in the background inherit that they are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("start", ["run", "start"])
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_a_process_starts_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """The process runs already, but its starter does not know its id yet: the interrupt waits until it does."""
    started: list[int] = []

    popen = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = popen(*arguments, **options)
        started.append(child.pid)
        signal.raise_signal(signal.SIGINT)
        return child

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    processes = Processes(tmp_path)
    sleep = "python -c 'import time; time.sleep(600)'"
    with pytest.raises(KeyboardInterrupt):
        processes.run(sleep) if start == "run" else processes.start("server", sleep, ready="ready")
    processes.stop_all()
    assert len(started) == 1
    assert not alive(started[0])
