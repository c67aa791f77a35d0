"""The number of CPUs that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.cli.common.cpus import usable_cpus


def test_quota_and_affinity_limit_the_cpus(tmp_path: Path) -> None:
    """Both versions of control groups; no quota, or a file that cannot be read, leaves the affinity."""
    mine = len(os.sched_getaffinity(0))
    assert usable_cpus(tmp_path) == mine
    for text, count in (("max 100000", mine), ("150000 100000", min(2, mine)), ("1000 100000", 1), ("", mine)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert usable_cpus(tmp_path) == count
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for text, count in (("-1", mine), ("50000", 1)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(text)
        assert usable_cpus(tmp_path) == count
