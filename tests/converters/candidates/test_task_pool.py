"""Tasks here and in other processes: the same results, the same errors, and nothing left behind."""

import contextlib
import os
import pickle
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest

from converters import convert
from converters.backends import ConversionContext
from converters.candidates import cpu_load, task_pool
from converters.candidates.candidate import Evidence
from converters.candidates.task_context import TaskContext
from converters.candidates.task_pool import TaskPool
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.quality.metrics import find_metric
from converters.quality.selection import Budget
from edgekit import errors
from edgekit.errors import ConversionError, UnsupportedOpError
from tests.simulators import dense_models, models

LONG_SECONDS = 120  # of the whole file: it starts early, see tests/conftest.py

ROWS = 40_000  # as many as joblib maps instead of copying


@pytest.fixture
def task_context(tmp_path):
    """Of a model without labels, with samples of 5 MB."""
    graph = dense_models.autoencoder()
    samples = Samples({"x": np.random.default_rng(0).normal(0, 1, (ROWS, 32)).astype(np.float32)})
    some = samples.take(slice(0, 50))
    answers = graph.run(some.inputs)
    evidence = Evidence(samples, some, answers, answers, find_metric(None, None, decisions=False), "y", "")
    context = ConversionContext(graph, graph.with_batch(1), some, TensorFlowProcess(), tmp_path)
    return TaskContext(context, evidence, Budget())


@pytest.fixture
def eager(monkeypatch):
    """Other processes are taken to cost nothing, so that all but the first task goes there."""
    monkeypatch.setattr(task_pool, "START_SECONDS", 0.0)
    monkeypatch.setattr(task_pool, "SEND_SECONDS", 0.0)


def who(task_context, wait=0.0):
    time.sleep(wait)
    return os.getpid()


def children():
    """Commands of the processes that this one has started and that still run, each with its id."""
    found = set()
    for name in Path("/proc/self/task").iterdir():
        for pid in (name / "children").read_text().split():
            with contextlib.suppress(OSError):  # ended meanwhile
                found.add((pid, Path(f"/proc/{pid}/cmdline").read_text()))
    return found


def complain(task_context):
    raise UnsupportedOpError("Einsum", "layer7", backend="LiteRT", advice="Write it otherwise.")


def die(task_context):
    os._exit(3)


def how_held(task_context):
    """Whether samples are mapped, whether the one copy is known again, and where a task may write."""
    with task_context.at_work() as context:
        held = task_context.evidence.choice.inputs["x"]
        while held is not None and not isinstance(held, np.memmap):
            held = held.base
        return isinstance(held, np.memmap), id(task_context), context.folder.parent


def test_first_task_is_done_here_and_short_ones_stay(task_context):
    """Nothing is known before the first; and starting processes would cost more than what is left."""
    with joblib.parallel_config(n_jobs=2), TaskPool(task_context) as hands:
        assert hands.at_a_time("tasks", 100) == 1
        hands.here("tasks", who)
        assert hands.at_a_time("tasks", 100) == 1
        hands.here("slow", who, 0.3)
        assert hands.at_a_time("slow", 10) == 1  # 1.5 s would be saved
        assert hands.at_a_time("slow", 100) == 2
        assert hands.at_a_time("unknown", 100) == 1
        assert hands.at_a_time("unknown", 100, like="slow") == 2


# Worker processes import everything as they start: about 15 s.
def test_processes_start_beforehand_where_much_is_to_come(task_context):
    """Then nothing has to be measured first, and starting costs no more; of little nothing is started."""
    with joblib.parallel_config(n_jobs=2), TaskPool(task_context) as hands:
        hands.expect(task_pool.START_SECONDS)
        assert hands.at_a_time("unknown", 2) == 1
        hands.expect(10 * task_pool.START_SECONDS)
        assert hands.at_a_time("unknown", 2) == 2
        assert os.getpid() not in {found for _, found in hands.away("unknown", who, [()] * 2)}


# Worker processes that start cannot be ended before they have started: about 15 s.
def test_processes_that_nobody_came_to_need_end_too(task_context, capfd):
    """Whether they have started or not."""
    before = children()
    with warnings.catch_warnings(), joblib.parallel_config(n_jobs=2), TaskPool(task_context) as hands:
        warnings.simplefilter("error")
        hands.expect(10 * task_pool.START_SECONDS)
        assert "popen_loky" in str(children() - before)
    assert "popen_loky" not in str(children() - before)
    assert capfd.readouterr() == ("", "")


def test_user_keeps_all_in_one_process(task_context, eager):
    """n_jobs=1, or a backend of threads."""
    for choice in ({"n_jobs": 1}, {"backend": "threading", "n_jobs": 2}):
        with joblib.parallel_config(**choice), TaskPool(task_context) as hands:
            hands.here("tasks", who, 0.1)
            assert hands.at_a_time("tasks", 100) == 1


# Worker processes start, one dies and others take its place: about 15 s.
def test_work_of_other_processes(task_context, eager, capfd):
    """Samples are mapped, errors come back as raised, a death is told; then no process and no mapped file is left."""
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with warnings.catch_warnings(), joblib.parallel_config(n_jobs=2), TaskPool(task_context) as hands:
        warnings.simplefilter("error")
        hands.here("tasks", who, 0.01)
        found = [held for _, held in hands.away("tasks", how_held, [()] * 6)]
        workers = {pid for _, pid in hands.away("tasks", who, [(0.1,)] * 8)}
        assert len(workers) == 2
        assert os.getpid() not in workers
        [(_, complaint)] = hands.away("tasks", complain, [()])
        with pytest.raises(ConversionError, match="ended without a word") as caught:
            list(hands.away("tasks", die, [(), ()]))
    assert all(mapped for mapped, _, _ in found)
    assert len({copy for _, copy, _ in found}) <= 2
    assert {folder for _, _, folder in found} == {task_context.context.folder}
    assert type(complaint) is UnsupportedOpError
    assert (complaint.op, complaint.layer, complaint.advice) == ("Einsum", "layer7", "Write it otherwise.")
    assert "cannot be converted for LiteRT" in str(complaint)
    assert "n_jobs=1" in caught.value.advice
    assert not any(task_context.context.folder.iterdir())
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    if before:
        assert not [name for name in set(os.listdir("/dev/shm")) - before if f"_{os.getpid()}_" in name]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error",
    [
        errors.DigestMismatchError("a file", expected="00", found="11"),
        errors.CompatibilityError(["too old", "too small"]),
        errors.MissingExtraError("torch", "torch"),
        errors.DataError("wrong", advice="mend it"),
    ],
)
def test_every_kind_of_error_survives_pickling(error):
    """Also those whose constructors ask for more than a message."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_backend_of_the_users_gets_every_task(task_context):
    """joblib's own multiprocessing stands for Dask and Ray here: another backend than the default."""
    with joblib.parallel_config("multiprocessing", n_jobs=2), TaskPool(task_context) as hands:
        assert hands.at_a_time("tasks", 5) == 2
        assert {place for place, _ in hands.away("tasks", who, [()] * 5)} == set(range(5))


# Three processes that import everything start one after the other: about 20 s.
def test_processes_end_when_the_parent_is_killed():
    """SIGKILL of the parent in the middle of tasks: within seconds no worker is left, nor what it has mapped."""
    script = textwrap.dedent("""
        import os, signal, sys, threading, time, joblib
        from converters.candidates.task_pool import TaskPool
        from tests.converters.candidates.test_task_pool import who
        class Nothing: bytes = 0
        with joblib.parallel_config(n_jobs=2), TaskPool(Nothing()) as hands:
            found = hands.away("tasks", who, [(0.5,), (0.5,), (60.0,), (60.0,)])
            print(next(found)[1], next(found)[1], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=480, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    end = time.monotonic() + 120
    while time.monotonic() < end and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


# Two whole conversions, one of which starts processes: 10 s, for LiteRT 45 s.
@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("litert", marks=pytest.mark.heavy)])
def test_conversion_is_the_same_in_one_process_and_in_two(tmp_path, eager, runtime):
    """Bundles bit by bit, and reports with the candidates in the same order: also of those with prepared weights."""
    models.saved(models.classifier(), tmp_path / "model.onnx")
    models.labelled_data(tmp_path / "data.npz")
    steps, bundles = {}, {}
    for jobs in (1, 2):
        steps[jobs] = []

        def step(label, jobs=jobs):
            steps[jobs].append(label)
            return contextlib.nullcontext()

        with joblib.parallel_config(n_jobs=jobs):
            [report] = convert(
                tmp_path / "model.onnx",
                targets=["raspberry-pi-5"],
                runtime=runtime,
                data=tmp_path / "data.npz",
                aim="size",
                on_step=step,
                output=tmp_path / str(jobs),
            )
        assert any(c.recipe.int4_layers for c in report.candidates)
        bundles[jobs] = {path.name: path.read_bytes() for path in (tmp_path / str(jobs)).glob("*/*")}
    assert any(", 2 at a time" in label for label in steps[2])
    assert not any("at a time" in label for label in steps[1])
    assert bundles[1] == bundles[2]


def jobs_here(task_context):
    with TaskPool(task_context) as hands:
        hands.here("tasks", who, 0.01)
        return hands.at_a_time("tasks", 100)


def test_daemon_keeps_all_in_one_process(task_context, eager):
    """A daemonic process of multiprocessing, as pools have them, may have no children."""
    with joblib.parallel_config("multiprocessing", n_jobs=2), TaskPool(task_context) as hands:
        assert [jobs for _, jobs in hands.away("tasks", jobs_here, [(), ()])] == [1, 1]


def test_work_stays_here_while_others_have_the_cores(task_context, monkeypatch):
    """Tasks that would go to other processes do not, where programs keep every core busy meanwhile."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: os.cpu_count())
    spin = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count())]
    try:
        with TaskPool(task_context) as hands:
            hands.here("slow", who, 0.6)
            assert hands.at_a_time("slow", 100) == 1
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_cores_are_free_that_nobody_works_on(monkeypatch):
    """What this process does itself is not taken for others', and where the system does not tell all are free."""
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(cpu_load, "busy_seconds", lambda: next(clock))
    monkeypatch.setattr(cpu_load.time, "monotonic", iter([0.0, 2.0]).__next__)
    monkeypatch.setattr(cpu_load.time, "process_time", iter([0.0, 2.0]).__next__)
    monkeypatch.setattr(cpu_load.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    seen = cpu_load.CpuLoad()
    assert seen.free() == 8.0
    with seen.watched():
        pass
    assert seen.free() == 7.5  # 3 s of work in 2 s, 2 s of them ours
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    assert seen.free() == 2.0  # of the host's eight, two that this process may use
