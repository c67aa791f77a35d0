"""Runs a command and measures its peak memory: the proportional set sizes of all its processes, summed."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

EVERY_SECONDS = 0.5


class Finished(msgspec.Struct, frozen=True):
    """A command that ended.

    Attributes:
        status: Its exit status; None if it was ended at the time limit.
        out, err: What it wrote.
        seconds: Wall time.
        cpu_seconds: Processor time of its processes that have ended by themselves, user and system.
        peak_bytes: Largest sum of the proportional set sizes (PSS) of its processes, sampled.
    """

    status: int | None
    out: str
    err: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measured(command: Sequence[str], *, limit_seconds: float, env: Mapping[str, str]) -> Finished:
    """Run `command` in a session of its own; end the whole session at the limit."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun, used, peak = time.monotonic(), _cpu_seconds(), 0
        child = subprocess.Popen(command, stdout=out, stderr=err, env=dict(env), start_new_session=True)
        try:
            while child.poll() is None and time.monotonic() - begun < limit_seconds:
                peak = max(peak, sum(_pss(pid) for pid in _tree(child.pid)))
                time.sleep(EVERY_SECONDS)
            status = child.poll()
        finally:
            for pid in _tree(child.pid):
                _end(pid)
            child.wait()
        seconds = time.monotonic() - begun
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Finished(status, texts[0], texts[1], seconds, _cpu_seconds() - used, peak)


def _cpu_seconds() -> float:
    """Processor time of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _tree(root: int) -> list[int]:
    """The process, all that descend from it, and all of its session."""
    parents, sessions = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    found = {pid for pid, session in sessions.items() if session == root} | ({root} & parents.keys())
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # the process has ended
    return 0


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(pid, signal.SIGKILL)
