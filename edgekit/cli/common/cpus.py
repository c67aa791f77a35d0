"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """CPUs of this process's affinity, limited by the container's CPU quota (rounded up); at least 1.

    Args:
        cgroup: Where the system shows the quota: ``cpu.max`` (version 2), or ``cpu/cpu.cfs_*_us`` (version 1).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(count, math.ceil(quota)) if quota else count)


def _quota(cgroup: Path) -> float:
    """CPUs of the quota; 0 for none, and where it cannot be read."""
    try:
        limit, _, period = (cgroup / "cpu.max").read_text(encoding="ascii").strip().partition(" ")
    except (OSError, UnicodeDecodeError):
        try:
            limit, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
        except (OSError, UnicodeDecodeError):
            return 0.0
    if not (limit.isdigit() and period.isdigit() and int(period)):  # "max", or -1
        return 0.0
    return int(limit) / int(period)
