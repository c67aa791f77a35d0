"""Starts the process that is measured, here or emulated, and sends it jobs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec

import converters
import edgekit
from converters.cache import cache_root
from converters.cost.emulated.folder import arm_folder, counting_command, missing, prepare_command
from converters.cost.measuring.messages import EMULATED, Job, Outcome
from edgekit.bundle.golden import write_golden
from edgekit.errors import RuntimeLoadError, UnavailableError
from edgekit.tensors import Array

HOST = "host"
MODULE = "converters.cost.measuring.subject"
ERROR_LINES = 5
LIMIT_SECONDS, EMULATED_LIMIT_SECONDS = 1800.0, 7200.0  # of one artifact: a model may hold a loop without end


class Measuring:
    """The process that is measured; use it as a context manager. Not safe for concurrent calls.

    Args:
        where: `HOST`, or an ARM core that is emulated.
        limit_seconds: Longest time for one artifact; None for `limit_of`.

    Raises:
        UnavailableError: The core cannot be emulated here.
    """

    def __init__(self, where: str, limit_seconds: float | None = None) -> None:
        self._where = where
        self._limit = limit_of(where) if limit_seconds is None else limit_seconds
        if where != HOST and (lacking := missing()):
            what, advice = lacking
            raise UnavailableError(f"instructions of {where} cannot be counted: {what}", advice=advice)
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-measure-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Measuring:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        self._folder.cleanup()

    def measure(
        self, path: Path, runtime: str, inputs: Mapping[str, Array], *, layers: bool = False, seconds: float = 0.0
    ) -> Outcome:
        """Measure one artifact with its own inputs of one row; see `subject.measure`.

        Raises:
            RuntimeLoadError: The artifact cannot be loaded or run there, or not within the limit.
            UnavailableError: The process cannot be started.
        """
        arrays = Path(self._folder.name) / "inputs.npz"
        arrays.write_bytes(write_golden(inputs, {}))  # with prefixes: savez takes an input "file" for its own argument
        job = Job(path=str(path.absolute()), runtime=runtime, inputs=str(arrays), layers=layers, seconds=seconds)
        line, late = self._answer(msgspec.json.encode(job))
        if line is None:
            status, text = self._end(), self._errors()
            if late:
                raise RuntimeLoadError(
                    f"{path.name} on {self._where} was not measured within {self._limit:g} s, and its process was ended"
                )
            raise RuntimeLoadError(
                f"{path.name} ended its process on {self._where} with {ended_with(status)}. {text}".strip()
            )
        outcome = msgspec.json.decode(line, type=Outcome)
        if outcome.fault:
            raise RuntimeLoadError(f"{path.name} on {self._where}: {outcome.fault}")
        return outcome

    def _answer(self, request: bytes) -> tuple[bytes | None, bool]:
        """The answer to a request, None where the process ended; and whether it was ended at the limit."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._limit, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            return process.stdout.readline() or None, late.is_set()
        except BrokenPipeError:
            return None, late.is_set()
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        command, environment = child_command(self._where, MODULE)
        with (folder / "errors").open("wb") as errors:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
                )
            except OSError as error:
                raise UnavailableError(
                    f"{self._where} cannot be emulated: {error}", advice=f"Run again: {prepare_command()}"
                ) from error
        return self._process

    def _end(self) -> int:
        """End the process and return its status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
            return process.wait(timeout=0.5)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()

    def _errors(self) -> str:
        text = (Path(self._folder.name) / "errors").read_text(errors="replace")
        return "\n".join(text.strip().splitlines()[-ERROR_LINES:])


def limit_of(where: str) -> float:
    """Seconds in which one artifact must have run on `HOST`, or on an emulated core."""
    return LIMIT_SECONDS if where == HOST else EMULATED_LIMIT_SECONDS


def child_command(
    where: str, module: str, *, python: Path | None = None, site: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command that runs a module of this package in a process of its own, and the environment of that process.

    Args:
        where: `HOST`, or an ARM core that is emulated, whose instructions are counted then.
        module: The module. An emulated one gets the argument ``--emulated``.
        python: On the host, the Python of another environment; None for this one.
        site: On an emulated core, the folder of other packages; None for those that were prepared.
    """
    environment = dict(os.environ)
    if where == HOST and python is None:
        return [sys.executable, "-m", module], environment
    for name in ("PYTHONHOME", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    if where == HOST:
        environment["PYTHONPATH"] = str(code_folder(cache_root()))
        return [str(python), "-m", module], environment
    home = arm_folder()
    environment |= {
        "PYTHONPATH": f"{site or home / 'site'}:{code_folder(home)}",
        "PYTHONPYCACHEPREFIX": str(home / "pycache"),  # compiling all of it takes 15 s
        "PYTHONHASHSEED": "0",  # the same count each time
    }
    return [*counting_command(home, where), "-P", "-m", module, EMULATED], environment


def code_folder(home: Path) -> Path:
    """A folder with this edgekit's code, without the packages beside it, which are for another Python or processor."""
    sources = [Path(str(package.__file__)).parent for package in (edgekit, converters)]
    folder = home / "code" / hashlib.sha256(str(sources).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        with contextlib.suppress(FileExistsError):
            (folder / source.name).symlink_to(source)
    return folder


def ended_with(status: int) -> str:
    """How a process ended, from its return code."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
