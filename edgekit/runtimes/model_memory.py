"""The memory that a model adds to the process that runs it. Linux only."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


class ModelMemory:
    """Memory that a model adds to this process: private pages, and pages of the model's file.

    Libraries' own pages are not the model's, and in an emulated process qemu's pages are not the program's.

    Args:
        model: The model's file.
        emulated: This process is emulated.
    """

    def __init__(self, model: Path, *, emulated: bool = False) -> None:
        self._model, self._emulated = str(model), emulated
        with contextlib.suppress(OSError):  # without it, the peak may be one of before
            Path("/proc/self/clear_refs").write_text("5")
        self._before, _ = self._own_and_others()

    def peak(self) -> int:
        """The largest number of bytes since the start that is certain; 0 where the system does not tell.

        The kernel keeps the peak of the whole process. At that moment everything else was at most what it is now.
        """
        own, others = self._own_and_others()
        return max(own, _peak_of_process() - others) - self._before if own else 0

    def _own_and_others(self) -> tuple[int, int]:
        """Bytes of the model and bytes of everything else in this process, both at one moment."""
        own = others = 0
        try:
            # qemu shows the program its own addresses in maps; smaps has those of its process, and both are the same.
            mapped = list(_ranges(Path("/proc/self/maps"))) if self._emulated else []
            counted = ""
            with Path("/proc/self/smaps").open() as lines:  # line by line: a list of them is megabytes of this process
                for line in lines:
                    if found := _RANGE.match(line):
                        start = int(found[1], 16)
                        inside = not self._emulated or any(first <= start < last for first, last in mapped)
                        counted = ("Rss:" if line.rstrip().endswith(self._model) else "Anonymous:") if inside else ""
                        continue
                    if line.startswith("Rss:"):
                        others += int(line.split()[1]) * 1024
                    if counted and line.startswith(counted):
                        own += int(line.split()[1]) * 1024
        except OSError:
            return 0, 0
        return own, others - own


def _ranges(maps: Path) -> Iterator[tuple[int, int]]:
    with maps.open() as lines:
        for line in lines:
            if found := _RANGE.match(line):
                yield int(found[1], 16), int(found[2], 16)


def _peak_of_process() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
