"""The whole journey, as `make demo` runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EDGEKIT = Path(sys.executable).parent / "edgekit"


def processes_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                cwd = os.readlink(entry / "cwd")
            except OSError:
                continue
            if cwd.startswith(str(folder)):
                found.append(int(entry.name))
    return found


@pytest.mark.heavy
def test_the_demo_holds_and_leaves_no_process(tmp_path: Path) -> None:
    """Every claim is checked by the demo itself; it exits 0 and nothing runs in its folder afterwards."""
    folder = tmp_path / "demo"
    done = subprocess.run(
        [EDGEKIT, "demo", "--dir", str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr
    for line in ("roll out 1.0.0", "damaged weights", "tamper", "every claim held"):
        assert line in done.stderr
    assert processes_in(folder) == []


@pytest.mark.heavy
def test_ctrl_c_ends_everything_that_the_demo_started(tmp_path: Path) -> None:
    """An interrupt while servers or commands run leaves no process and exits 130."""
    folder = tmp_path / "demo"
    child = subprocess.Popen(
        [EDGEKIT, "demo", "--dir", str(folder)], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_in(folder)
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130
    assert child.stderr is not None
    child.stderr.close()
    assert processes_in(folder) == []
