"""Runs a bundle on a runtime version in a process of its own. The end of that process is a result, also by a signal."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from converters.cost.measuring.process import HOST, child_command, ended_with, limit_of
from converters.recheck.environment import Environment
from converters.recheck.messages import NOT_THE_RUNTIME, Request, Result, Rows
from converters.recheck.packages import MODULES
from edgekit.bundle.golden import read_golden, write_golden
from edgekit.errors import UnavailableError
from edgekit.tensors import Array

MODULE = "converters.recheck.subject"
ERROR_CHARACTERS = 300
_OTHER_NUMPY = "compiled using NumPy 1"  # numpy says so where a package was built before numpy 2
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGTRAP)


class RowSet(msgspec.Struct, frozen=True):
    """Samples by input (N, ...), and for a model with state the sizes of their streams."""

    name: str
    inputs: dict[str, Array]
    streams: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Answers(msgspec.Struct, frozen=True):
    """The answers of one runtime version.

    Attributes:
        answers: Answers (N, ...) by output, by the name of the samples; empty where there is a fault.
        fault: Why it could not load or run the bundle, a crash included; empty where it did.
        first: The artifact's own inputs for the first golden sample.
    """

    answers: dict[str, dict[str, Array]]
    fault: str = ""
    first: bytes = b""


def run_bundle(bundle: Path, made: Environment, sets: Mapping[str, RowSet]) -> Answers:
    """Answer all samples.

    Raises:
        UnavailableError: the process could not be started, or ended for a reason that is not the runtime's.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-recheck-") as scratch:
        folder = Path(scratch)
        rows = tuple(_written(folder, one) for one in sets.values())
        request = Request(
            bundle=str(bundle.absolute()),
            module=MODULES[made.wanted.package],
            rows=rows,
            first=str(folder / "first.npz"),
            result=str(folder / "result.json"),
        )
        done = _served(folder, made, request)
        if done.fault:
            return Answers({}, done.fault)
        answers = {one.name: read_golden(Path(one.answers).read_bytes())[1] for one in rows}
        return Answers(answers, first=Path(request.first).read_bytes())


def measure_bundle(bundle: Path, made: Environment, first: bytes) -> Result:
    """Measure one inference in a fresh process; `Result.fault` says why it was not measured.

    Args:
        bundle: Folder of the bundle.
        made: The runtime version.
        first: `Answers.first`.

    Raises:
        UnavailableError: as `run_bundle`.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-recheck-") as scratch:
        folder = Path(scratch)
        (folder / "first.npz").write_bytes(first)
        request = Request(
            bundle=str(bundle.absolute()),
            module=MODULES[made.wanted.package],
            first=str(folder / "first.npz"),
            result=str(folder / "result.json"),
        )
        return _served(folder, made, request)


def _written(folder: Path, rows: RowSet) -> Rows:
    inputs = folder / f"{rows.name}-inputs.npz"
    inputs.write_bytes(write_golden(rows.inputs, {}))
    return Rows(rows.name, str(inputs), str(folder / f"{rows.name}-answers.npz"), rows.streams)


def _served(folder: Path, made: Environment, request: Request) -> Result:
    command, environment = child_command(made.where, MODULE, python=made.python, site=made.site)
    asked, result = folder / "request.json", Path(request.result)
    asked.write_bytes(msgspec.json.encode(request))
    result.unlink(missing_ok=True)
    limit = limit_of(made.where)
    own = made.python is None and made.where == HOST  # it may find this package by its working folder
    with (folder / "errors").open("wb") as errors:
        try:
            status = subprocess.run(
                [*command, str(asked)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environment,
                cwd=None if own else folder,
                timeout=limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return Result(fault=f"{made.wanted} did not answer within {limit:.0f} s")
        except OSError as error:
            raise UnavailableError(f"{made.wanted} cannot be started: {error}") from error
    if status == 0 and result.is_file():
        return msgspec.json.decode(result.read_bytes(), type=Result)
    text = (folder / "errors").read_text(errors="replace").strip()
    return Result(fault=_fault(made, status, text.splitlines()))


def _fault(made: Environment, status: int, lines: list[str]) -> str:
    """How the process ended, as a result. Raises UnavailableError where that says nothing about the runtime."""
    last = lines[-1][-ERROR_CHARACTERS:] if lines else ""
    if any(_OTHER_NUMPY in line for line in lines):
        raise UnavailableError(
            f"{made.wanted} was built for another numpy than it has here: {last}",
            advice="That says nothing about the runtime. Please report it: the environment must be made with numpy<2.",
        )
    crashed = -status in [*_CRASHES] or status - 128 in [*_CRASHES]  # an emulator ends with 128 and the signal
    if status == NOT_THE_RUNTIME or (status < 0 and not crashed):
        raise UnavailableError(
            f"the process with {made.wanted} ended with {ended_with(status)}: {last}".rstrip(": "),
            advice="That says nothing about the runtime: free memory and disk, and run the command again.",
        )
    return f"{made.wanted} ended its process with {ended_with(status)}. {last}".strip()
