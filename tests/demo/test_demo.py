"""The demo, run as `make demo` runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LONG_SECONDS = 150  # of the whole file: it starts early, see tests/conftest.py

EDGEKIT = Path(sys.executable).parent / "edgekit"


def processes_in(folder: Path) -> list[int]:
    """Ids of the processes whose working folder is inside `folder`."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                cwd = os.readlink(entry / "cwd")
            except OSError:
                continue
            if cwd.startswith(str(folder)):
                pids.append(int(entry.name))
    return pids


def run_demo(tmp_path: Path, *options: str, threads: str = "") -> str:
    """Run the demo to its end; check that it succeeds and leaves no process. Returns its stderr.

    It takes more than two minutes on two busy cores, mostly for training and conversion.
    """
    folder = tmp_path / "demo"
    limits = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), threads)
    done = subprocess.run(
        [EDGEKIT, "demo", "--dir", str(folder), *options],
        cwd=tmp_path,
        env={**os.environ, **(limits if threads else {})},
        capture_output=True,
        text=True,
        timeout=2400,
    )
    assert done.returncode == 0, done.stderr
    assert processes_in(folder) == []
    return done.stderr


@pytest.mark.heavy
def test_the_demo_holds_and_leaves_no_process(tmp_path: Path) -> None:
    """The demo checks its claims itself: it exits 0, and no process runs in its folder afterwards."""
    output = run_demo(tmp_path)
    for line in ("roll out 1.0.0", "damaged weights", "made from a delta of", "tamper", "every claim holds"):
        assert line in output


@pytest.mark.soak
@pytest.mark.heavy
@pytest.mark.parametrize(("seed", "threads"), [("1", ""), ("2", ""), ("3", "1")])
def test_the_demo_holds_whatever_models_come_out_of_training(tmp_path: Path, seed: str, threads: str) -> None:
    """Other seeds give other models, and so does one thread, because it changes the order of sums."""
    assert "every claim holds" in run_demo(tmp_path, "--seed", seed, threads=threads)


@pytest.mark.heavy
def test_ctrl_c_ends_everything_that_the_demo_started(tmp_path: Path) -> None:
    """After an interrupt the demo exits 130, and none of its servers or commands runs any more."""
    folder = tmp_path / "demo"
    child = subprocess.Popen(
        [EDGEKIT, "demo", "--dir", str(folder)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit SIG_IGN
    )
    deadline = time.monotonic() + 240
    while not processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_in(folder)
    child.send_signal(signal.SIGINT)
    assert child.wait(240) == 130
    assert child.stderr is not None
    child.stderr.close()
    assert processes_in(folder) == []
