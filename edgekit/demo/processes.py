"""Child processes of the demo. Each one has its own session and is ended with the demo."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.demo.cache import demo_cache
from edgekit.errors import EdgekitError, UnavailableError

PIDS_NAME = "processes.json"
STOP_SECONDS = 10.0


class CommandError(EdgekitError):
    """A command of the demo ended with an unexpected exit status, or did not end in time."""


class Processes:
    """Runs commands and servers in one folder, keeps their logs, and ends the servers. Threads may share it.

    Args:
        folder: Working folder of every command; its logs are in ``logs/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._stopped = False
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: list[subprocess.Popen[bytes]] = []

    def run(self, command: str, *, expect: int = 0, timeout_seconds: float = 1800.0) -> str:
        """Run a command line to its end, as a user would type it. Returns its stdout.

        Raises:
            CommandError: its exit status is not `expect`, or it did not end in time. The message has the command, and
                the end of its stderr.
        """
        try:
            with self._command(command) as child:
                out, err = child.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"`{command}` did not end within {timeout_seconds:.0f} s") from error
        with self._lock, (self._logs / "commands.log").open("ab") as log:
            log.write(f"$ {command}\n".encode() + out + err)
        if child.returncode != expect:
            tail = "\n".join(err.decode(errors="replace").strip().splitlines()[-8:])
            raise CommandError(f"`{command}` exited {child.returncode}, expected {expect}:\n{tail}")
        return out.decode()

    def start(self, name: str, command: str, *, ready: str, timeout_seconds: float = 180.0) -> str:
        """Start a server and wait until a line of its log matches the pattern `ready`. Returns that line.

        Raises:
            UnavailableError: the server ended, or no line matched in time. The message has the end of its log.
        """
        log_path = self._logs / f"{name}.log"
        offset = log_path.stat().st_size if log_path.exists() else 0
        with log_path.open("ab") as log, _interrupts_later(), self._lock:
            self._refuse_if_stopped(command)
            child = self._running[name] = subprocess.Popen(
                _resolve(command),
                cwd=self._folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._write_pids()
        deadline = time.monotonic() + timeout_seconds
        while True:
            text = log_path.read_bytes()[offset:].decode(errors="replace")
            match = re.search(rf"^.*{ready}.*$", text, re.MULTILINE)
            if match:
                return match.group(0)
            if child.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(text.strip().splitlines()[-8:])
                raise UnavailableError(f"{name} did not become ready; its log ends:\n{tail}")
            time.sleep(0.02)

    def stop(self, name: str) -> None:
        """End one server: SIGTERM, then SIGKILL after STOP_SECONDS."""
        with self._lock:
            child = self._running.pop(name, None)
        if child is not None:
            _end(child)
        with self._lock:
            self._write_pids()

    def stop_all(self) -> None:
        """End every command and server, the newest server first; nothing can be started afterwards.

        Interrupts are ignored meanwhile, so a second Ctrl-C leaves no server.
        """
        with _ignore_interrupts():
            with self._lock:
                self._stopped = True
                commands = list(self._commands)
            for child in commands:
                _end(child)
            for name in reversed(list(self._running)):
                self.stop(name)

    @property
    def names(self) -> list[str]:
        """Names of the running servers."""
        return list(self._running)

    @contextlib.contextmanager
    def _command(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command while the context lasts; an error or an interrupt in it ends the command."""
        with _interrupts_later(), self._lock:
            self._refuse_if_stopped(command)
            child = subprocess.Popen(
                _resolve(command),
                cwd=self._folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._commands.append(child)
        try:
            with child:
                try:
                    yield child
                except BaseException:
                    _end(child)
                    raise
        finally:
            with self._lock:
                self._commands.remove(child)

    def _refuse_if_stopped(self, command: str) -> None:
        if self._stopped:
            raise CommandError(f"`{command}` was not started, because the demo ends")

    def _write_pids(self) -> None:
        pids = {name: child.pid for name, child in self._running.items()}
        (self._folder / PIDS_NAME).write_text(json.dumps(pids))


def stop_kept(folder: Path) -> list[str]:
    """End the servers that `edgekit demo --keep` left running in `folder`. Returns their names.

    A process is ended only if it leads its own session and its working folder is `folder`. So a process id that the
    system has since given to another program is left alone.

    Raises:
        EdgekitError: `folder` has no list of a demo's processes.
    """
    try:
        pids: Mapping[str, int] = json.loads((folder / PIDS_NAME).read_text())
    except (OSError, ValueError) as error:
        raise EdgekitError(f"{folder} holds no kept demo: {error}") from error
    ended = []
    for name, pid in reversed(list(pids.items())):
        try:
            is_ours = os.getsid(pid) == pid and Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()
        except OSError:
            continue
        if is_ours:
            _end_group(pid)
            ended.append(name)
    return ended


def _resolve(command: str) -> list[str]:
    """The arguments of a command line, with edgekit's programs from this environment even if it is not on PATH."""
    argv = shlex.split(command)
    beside = Path(sys.executable).parent / argv[0]
    if argv[0] == "python":
        return [sys.executable, *argv[1:]]
    return [str(beside) if beside.exists() else argv[0], *argv[1:]]


def _environment() -> dict[str, str]:
    """The caller's environment without EDGEKIT_ variables, which would override the demo's settings.

    Where Python must not write compiled files beside its sources, every command would compile all libraries again. So
    compiled files go to the user's cache.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
    if env.pop("PYTHONDONTWRITEBYTECODE", "") and "PYTHONPYCACHEPREFIX" not in env:
        env["PYTHONPYCACHEPREFIX"] = str(demo_cache() / "compiled")
    return {**env, "PYTHONUNBUFFERED": "1"}


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # children that the leader left in its group
    child.wait()


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """True unless the process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold back an interrupt until the context ends.

    One that arrives while a process is started, before its id is kept, would leave that process running. Only the main
    thread receives interrupts; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


@contextlib.contextmanager
def _ignore_interrupts() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
