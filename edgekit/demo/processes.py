"""Child processes of the demo: started in a session of their own, awaited until ready, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.errors import EdgekitError, UnavailableError

PIDS_NAME = "processes.json"
STOP_SECONDS = 10.0


class CommandError(EdgekitError):
    """A command of the demo ended with another exit status than expected."""


class Processes:
    """Runs commands inside one folder, keeps their logs, and ends what still runs.

    Args:
        folder: Working folder of every command; logs go to ``logs/`` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, command: str, *, expect: int = 0, timeout_seconds: float = 1800.0) -> str:
        """Run a command line, as a user would type it, to its end and return its stdout.

        Raises:
            CommandError: its exit status is not `expect`; shows the command and the end of its stderr.
        """
        with subprocess.Popen(
            _resolve(command),
            cwd=self._folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            try:
                out, err = child.communicate(timeout=timeout_seconds)
            except BaseException as error:
                _end(child)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise CommandError(f"`{command}` did not end within {timeout_seconds:.0f} s") from error
                raise
        with (self._logs / "commands.log").open("ab") as log:
            log.write(f"$ {command}\n".encode() + out + err)
        if child.returncode != expect:
            tail = "\n".join(err.decode(errors="replace").strip().splitlines()[-8:])
            raise CommandError(f"`{command}` exited {child.returncode}, expected {expect}:\n{tail}")
        return out.decode()

    def start(self, name: str, command: str, *, ready: str, timeout_seconds: float = 180.0) -> str:
        """Start a server and wait until a line of its log matches `ready`; return that line.

        Raises:
            UnavailableError: it ended or stayed silent; shows the end of its log.
        """
        log_path = self._logs / f"{name}.log"
        offset = log_path.stat().st_size if log_path.exists() else 0
        with log_path.open("ab") as log:
            self._running[name] = subprocess.Popen(
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
            found = re.search(rf"^.*{ready}.*$", text, re.MULTILINE)
            if found:
                return found.group(0)
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(text.strip().splitlines()[-8:])
                raise UnavailableError(f"{name} did not become ready; its log ends:\n{tail}")
            time.sleep(0.02)

    def stop(self, name: str) -> None:
        """End one server: SIGTERM, then SIGKILL when it does not obey."""
        child = self._running.pop(name, None)
        if child is not None:
            _end(child)
        self._write_pids()

    def stop_all(self) -> None:
        """End every server, the last started first. A second Ctrl-C cannot leave one behind."""
        with _deaf_to_interrupts():
            for name in reversed(list(self._running)):
                self.stop(name)

    @property
    def names(self) -> list[str]:
        """Servers that run."""
        return list(self._running)

    def _write_pids(self) -> None:
        pids = {name: child.pid for name, child in self._running.items()}
        (self._folder / PIDS_NAME).write_text(json.dumps(pids))


def stop_kept(folder: Path) -> list[str]:
    """End what `edgekit demo --keep` left running in `folder`; returns the names.

    A process is ended only when it still is the leader of its own session and works in `folder`, so that a number
    that the system has given to another program since is never touched.

    Raises:
        EdgekitError: `folder` holds no demo.
    """
    try:
        pids: Mapping[str, int] = json.loads((folder / PIDS_NAME).read_text())
    except (OSError, ValueError) as error:
        raise EdgekitError(f"{folder} holds no kept demo: {error}") from error
    ended = []
    for name, pid in reversed(list(pids.items())):
        try:
            ours = os.getsid(pid) == pid and Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()
        except OSError:
            continue
        if ours:
            _end_group(pid)
            ended.append(name)
    return ended


def _resolve(command: str) -> list[str]:
    """Use the commands of this environment, whether or not it is on PATH."""
    argv = shlex.split(command)
    beside = Path(sys.executable).parent / argv[0]
    if argv[0] == "python":
        return [sys.executable, *argv[1:]]
    return [str(beside) if beside.exists() else argv[0], *argv[1:]]


def _environment() -> dict[str, str]:
    """The caller's environment without edgekit settings, which would overrule the demo's own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
    return {**env, "PYTHONUNBUFFERED": "1"}


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # whatever the leader left in its group
    child.wait()


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """True unless it is gone, or dead and only waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
