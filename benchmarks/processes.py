"""CPU time and memory of processes with their descendants, from ``/proc``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from edgekit.demo.processes import PIDS_NAME


def pids_of(folder: Path) -> dict[str, int]:
    """The running servers of a folder by name."""
    found: dict[str, int] = json.loads((folder / PIDS_NAME).read_text())
    return found


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its descendants since their start, user and system."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in _family(pid)]
    return sum(int(one[11]) + int(one[12]) for one in fields) / ticks


def peak_mib_of(pid: int) -> float:
    """Sum of the largest resident memories of a process and its descendants."""
    lines = [line for one in _family(pid) for line in Path(f"/proc/{one}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = ""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            children = (task / "children").read_text()
        for child in children.split():
            yield from _family(int(child))
