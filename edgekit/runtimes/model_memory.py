"""The memory that a model adds to the process that runs it. Linux only."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


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
        self._before = self._own()

    def peak(self) -> int:
        """The largest number of bytes since the start that is certain; 0 where the system does not tell.

        The kernel keeps the peak of the whole process. At that moment everything else was at most what it is now.
        """
        own = self._own()
        at_peak = _status("VmHWM") - (_status("VmRSS") - own)
        return max(own, at_peak) - self._before if own else 0

    def _own(self) -> int:
        try:
            maps, lines = Path("/proc/self/maps").read_text(), Path("/proc/self/smaps").read_text().splitlines()
        except OSError:
            return 0
        # qemu shows the program its own addresses in maps; smaps has those of qemu's process, and both are the same.
        mapped = [(int(a, 16), int(b, 16)) for a, b in _RANGE.findall(maps)]
        total, counted = 0, ""
        for line in lines:
            if found := _RANGE.match(line):
                start = int(found[1], 16)
                inside = not self._emulated or any(first <= start < last for first, last in mapped)
                counted = ("Rss:" if line.endswith(self._model) else "Anonymous:") if inside else ""
            elif counted and line.startswith(counted):
                total += int(line.split()[1]) * 1024
        return total


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
