"""Ctrl-C during a search, and the progress lines of steps, with real processes and signals."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from edgekit.cli.common import console
from tests.simulators import models

RUN = """
import functools, sys, joblib
from converters import pipeline
from converters.candidates.task_pool import ProcessCosts
from edgekit.cli.main import edgekit, run
pipeline.run_plan = functools.partial(pipeline.run_plan, costs=ProcessCosts(0.0, 0.0))
jobs = int(sys.argv.pop(1))
with joblib.parallel_config(n_jobs=jobs):
    sys.exit(run(edgekit, "edgekit"))
"""


def group(number):
    """Ids of processes in a process group that still run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == number and fields[0] != "Z":
            found.append(int(name))
    return found


def until(process, text):
    """Read stderr of `process` until `text` is in it."""
    read = b""
    while text not in read:
        part = os.read(process.stderr.fileno(), 4096)
        assert part, read.decode()
        read += part
    return read.decode()


@pytest.mark.parametrize(("jobs", "sign"), [(1, b"int8-weights ..."), (2, b"sensitivity of ")])
def test_interrupted_search_says_what_it_has_and_goes_on_from_there(tmp_path, jobs, sign):
    """SIGINT prints the candidates so far, exits with 130 and leaves no process; the next run continues."""
    models.saved(models.classifier(), tmp_path / "model.onnx")
    models.labelled_data(tmp_path / "data.npz", rows=30_000)
    options = ["--target", "raspberry-pi-5", "--runtime", "onnxruntime", "--data", tmp_path / "data.npz"]
    options += ["--prune", "none", "-o", tmp_path / "out"]  # one channel of the model happens to be dead
    command = [sys.executable, "-c", RUN, str(jobs), "convert", tmp_path / "model.onnx", *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    until(process, sign)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=480)
    text = err.decode()
    assert process.returncode == 130, text
    assert out == b""
    assert re.search(r"^ *[\d,]+ .* (fits|chosen) +float32$", text, re.MULTILINE)
    assert "candidates so far; the best is " in text
    assert "no bundle was written; run the same command again to continue" in text
    assert "Traceback" not in text
    assert "leaked" not in text
    assert not (tmp_path / "out").exists()
    end = time.monotonic() + 120
    while group(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not group(process.pid)
    assert not list(tmp_path.glob("edgekit-*"))
    if jobs == 1:
        again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=900)
        assert "raspberry-pi-5: int8-weights" in again.stderr
        assert "raspberry-pi-5: float32" not in again.stderr


STARTING = """
import signal, time, joblib
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in processes that a shell starts in the background
from converters.candidates.task_pool import TaskPool
def sleep(context):
    time.sleep(60)
try:
    with joblib.parallel_config(n_jobs=4), TaskPool(None) as pool:
        print("starting", flush=True)
        for _ in pool.run_remote("sleep", sleep, [()] * 4):
            pass
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6])
def test_processes_that_are_starting_say_nothing_of_an_interruption(delay):
    """Ctrl-C reaches them while they import their libraries, when Python would print a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"starting\n"
    while len(group(process.pid)) < 2:
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out == b"stopped\n"
    assert b"Traceback" not in err
    assert b"KeyboardInterrupt" not in err


def test_second_interruption_ends_at_once():
    """The second Ctrl-C ends the process, also during the clean-up of the first."""
    script = """
import time
from edgekit.cli.common.console import end_on_second_interrupt
with end_on_second_interrupt():
    try:
        print("ready", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("cleaning", flush=True)
        time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        for line in ("ready\n", "cleaning\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == -signal.SIGINT


def test_interruption_is_as_ever_afterwards():
    """The earlier handler is restored."""
    before = signal.getsignal(signal.SIGINT)
    with console.end_on_second_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_short_step_tells_nothing_of_its_parts(capsys):
    """One line, with the time."""
    with console.step("short") as tell:
        tell(1, 3, 0.5)
        tell(2, 3, None)
    assert capsys.readouterr().err.startswith("short ... 0.0 s")


def test_long_step_tells_on_lines_of_their_own_without_a_terminal(capsys):
    """A long step prints finished parts, all parts and the time left on lines of their own."""
    with console.step("long", plain_seconds=0.0) as tell:
        tell(1, 3, 40.4)
        tell(2, 3, 20.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "long ... 1 of 3 done, about 40 s for the rest; more may follow",
        "long ... 2 of 3 done, about 20 s for the rest; more may follow",
    ]
    assert lines[2] == "long ... 0.0 s"


def test_long_step_tells_on_one_line_of_a_terminal(capsys, monkeypatch):
    """The line is written anew each time."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with contextlib.suppress(KeyboardInterrupt), console.step("long") as tell:
        tell(1, 3, 40.4)
        raise KeyboardInterrupt
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\r\x1b[Klong ... 1 of 3 done, about 40 s" in text
    assert text.endswith("\r\x1b[Klong ... stopped after 0.0 s\n")
