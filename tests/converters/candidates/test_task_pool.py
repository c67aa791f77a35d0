"""The task pool: tasks in this and in other processes give the same results and errors, and leave nothing behind."""

import contextlib
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest

from converters.backends import ConversionContext
from converters.candidates import cpu_load, task_pool
from converters.candidates.evidence import Evidence
from converters.candidates.task_context import TaskContext
from converters.candidates.task_pool import ProcessCosts, TaskPool
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from converters.progress import ConversionCallbacks
from converters.quality.judging import JudgedOutput
from converters.quality.measured import Budget
from converters.quality.metrics import find_metric
from edgekit import errors
from edgekit.errors import ConversionError, UnsupportedOpError
from tests.simulators import dense_models, models

LONG_SECONDS = 120  # duration of this file: it starts early, see tests/conftest.py

ROWS = 40_000  # enough bytes for joblib to map them instead of copying
FREE = ProcessCosts(0.0, 0.0)  # all tasks but the first go to other processes


@pytest.fixture
def task_context(tmp_path):
    """The context of a model without labels, with samples of 5 MB."""
    graph = dense_models.autoencoder()
    samples = Samples({"x": np.random.default_rng(0).normal(0, 1, (ROWS, 32)).astype(np.float32)})
    some = samples.take(slice(0, 50))
    answers = graph.run(some.inputs)
    judged = (JudgedOutput("y", find_metric(None, None, decisions=False)),)
    evidence = Evidence(samples, some, answers, answers, judged, "y", "")
    context = ConversionContext(graph, graph.with_batch(1), some, TensorFlowProcess(), tmp_path)
    return TaskContext(context, evidence, Budget())


def process_id(task_context, wait=0.0):
    time.sleep(wait)
    return os.getpid()


def children():
    """Ids and commands of the running child processes of this process."""
    found = set()
    for name in Path("/proc/self/task").iterdir():
        for pid in (name / "children").read_text().split():
            with contextlib.suppress(OSError):  # the process has ended
                found.add((pid, Path(f"/proc/{pid}/cmdline").read_text()))
    return found


def complain(task_context):
    raise UnsupportedOpError("Einsum", "layer7", backend="LiteRT", advice="Write it otherwise.")


def die(task_context):
    os._exit(3)


def copy_facts(task_context):
    """Whether samples are mapped, the identity of the unpacked copy, and the parent of the task's folder."""
    with task_context.for_task() as context:
        array = task_context.evidence.choice.inputs["x"]
        while array is not None and not isinstance(array, np.memmap):
            array = array.base
        return isinstance(array, np.memmap), id(task_context), context.folder.parent


@pytest.mark.parametrize(
    ("thread", "kind", "printed"),
    [(task_pool.LOKY_THREAD, KeyError, False), ("mine", KeyError, True), (task_pool.LOKY_THREAD, OSError, True)],
)
def test_withdrawn_tasks_of_loky_print_no_traceback(monkeypatch, thread, kind, printed):
    """Where an error ends a pool, loky's thread may not find a task any more; other errors are printed as before."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    task_pool._hide_withdrawn_tasks()
    task_pool._hide_withdrawn_tasks()

    def fail():
        raise kind(13)

    one = threading.Thread(target=fail, name=thread)
    one.start()
    one.join()
    assert len(seen) == printed


def test_first_task_is_done_here_and_short_ones_stay(task_context):
    """No time is known before the first task, and starting processes would cost more than the remaining work."""
    with joblib.parallel_config(n_jobs=2), TaskPool(task_context) as pool:
        assert pool.at_a_time("tasks", 100) == 1
        pool.run_local("tasks", process_id)
        assert pool.at_a_time("tasks", 100) == 1
        pool.run_local("slow", process_id, 0.3)
        assert pool.at_a_time("slow", 10) == 1  # 1.5 s would be saved
        assert pool.at_a_time("slow", 100) == 2
        assert pool.at_a_time("unknown", 100) == 1
        assert pool.at_a_time("unknown", 100, like="slow") == 2


# Worker processes import everything as they start: about 15 s.
def test_processes_start_beforehand_where_much_is_to_come(task_context):
    """For much work, processes start before any task is measured; for little work none starts."""
    with joblib.parallel_config(n_jobs=2), TaskPool(task_context) as pool:
        pool.expect(ProcessCosts().start_seconds)
        assert pool.at_a_time("unknown", 2) == 1
        pool.expect(10 * ProcessCosts().start_seconds)
        assert pool.at_a_time("unknown", 2) == 2
        assert os.getpid() not in {found for _, found in pool.run_remote("unknown", process_id, [()] * 2)}


# Worker processes that start cannot be ended before they have started: about 15 s.
def test_processes_that_nobody_came_to_need_end_too(task_context, capfd):
    """Processes that got no task end with the pool, whether they have started or not."""
    before = children()
    with warnings.catch_warnings(), joblib.parallel_config(n_jobs=2), TaskPool(task_context) as pool:
        warnings.simplefilter("error")
        pool.expect(10 * ProcessCosts().start_seconds)
        assert "popen_loky" in str(children() - before)
    assert "popen_loky" not in str(children() - before)
    assert capfd.readouterr() == ("", "")


def test_user_keeps_all_in_one_process(task_context):
    """With n_jobs=1, or a backend of threads, all tasks stay in this process."""
    for choice in ({"n_jobs": 1}, {"backend": "threading", "n_jobs": 2}):
        with joblib.parallel_config(**choice), TaskPool(task_context, costs=FREE) as pool:
            pool.run_local("tasks", process_id, 0.1)
            assert pool.at_a_time("tasks", 100) == 1


# Worker processes start, one dies and others take its place: about 15 s.
def test_work_of_other_processes(task_context, capfd):
    """Samples are mapped, errors come back as raised, a dead process is reported, and no process or file is left."""
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with warnings.catch_warnings(), joblib.parallel_config(n_jobs=2), TaskPool(task_context) as pool:
        warnings.simplefilter("error")
        pool.run_local("tasks", process_id, 0.01)
        found = [facts for _, facts in pool.run_remote("tasks", copy_facts, [()] * 6)]
        workers = {pid for _, pid in pool.run_remote("tasks", process_id, [(0.1,)] * 8)}
        assert len(workers) == 2
        assert os.getpid() not in workers
        [(_, complaint)] = pool.run_remote("tasks", complain, [()])
        with pytest.raises(ConversionError, match="ended without an error of its own") as caught:
            list(pool.run_remote("tasks", die, [(), ()]))
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
    """Errors whose constructors take more than a message survive too."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_backend_of_the_users_gets_every_task(task_context):
    """joblib's multiprocessing backend stands for Dask and Ray here: it is not the default backend."""
    with joblib.parallel_config("multiprocessing", n_jobs=2), TaskPool(task_context) as pool:
        assert pool.at_a_time("tasks", 5) == 2
        assert {place for place, _ in pool.run_remote("tasks", process_id, [()] * 5)} == set(range(5))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process uses")
def test_a_process_that_needs_too_much_memory_is_ended_and_told(task_context, monkeypatch):
    """The error blames memory by the exit status of the process, which watches itself."""
    monkeypatch.setattr(task_pool, "memory_limit", lambda: 1 << 20)
    with (
        joblib.parallel_config(n_jobs=2),
        TaskPool(task_context, costs=FREE) as pool,
        pytest.raises(ConversionError, match="needed more memory than was free when it started"),
    ):
        list(pool.run_remote("tasks", process_id, [(60.0,), (60.0,)]))


# Three processes that import everything start one after the other: about 20 s.
def test_processes_end_when_the_parent_is_killed():
    """SIGKILL of the parent in the middle of tasks: within seconds no worker is left."""
    script = textwrap.dedent("""
        import os, signal, sys, threading, time, joblib
        from converters.candidates.task_pool import TaskPool
        from tests.converters.candidates.test_task_pool import process_id
        class Empty: bytes = 0
        with joblib.parallel_config(n_jobs=2), TaskPool(Empty()) as pool:
            found = pool.run_remote("tasks", process_id, [(0.5,), (0.5,), (60.0,), (60.0,)])
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
def test_conversion_is_the_same_in_one_process_and_in_two(tmp_path, runtime):
    """Bundles are equal bit by bit, and reports have the candidates in the same order, also with prepared weights."""
    models.saved(models.classifier(), tmp_path / "model.onnx")
    models.labelled_data(tmp_path / "data.npz")
    steps, bundles = {}, {}
    for jobs in (1, 2):
        steps[jobs] = []

        def step(label, jobs=jobs):
            steps[jobs].append(label)
            return contextlib.nullcontext()

        with joblib.parallel_config(n_jobs=jobs):
            options = ConversionOptions(
                targets=["raspberry-pi-5"],
                runtime=runtime,
                data=tmp_path / "data.npz",
                aim="size",
                output=tmp_path / str(jobs),
            )
            plan = make_plan(tmp_path / "model.onnx", options)
            [report] = run_plan(plan, callbacks=ConversionCallbacks(step=step), costs=FREE)
        assert any(c.recipe.int4_layers for c in report.candidates)
        bundles[jobs] = {path.name: path.read_bytes() for path in (tmp_path / str(jobs)).glob("*/*")}
    assert any(", 2 at a time" in label for label in steps[2])
    assert not any("at a time" in label for label in steps[1])
    assert bundles[1] == bundles[2]


def jobs_here(task_context):
    with TaskPool(task_context, costs=FREE) as pool:
        pool.run_local("tasks", process_id, 0.01)
        return pool.at_a_time("tasks", 100)


def test_daemon_keeps_all_in_one_process(task_context):
    """A daemonic process of multiprocessing may have no children, so all tasks stay in it."""
    with joblib.parallel_config("multiprocessing", n_jobs=2), TaskPool(task_context) as pool:
        assert [jobs for _, jobs in pool.run_remote("tasks", jobs_here, [(), ()])] == [1, 1]


def test_work_stays_here_while_others_have_the_cores(task_context, monkeypatch):
    """While other programs keep every core busy, no task goes to another process."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: os.cpu_count())
    spin = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count())]
    try:
        with TaskPool(task_context) as pool:
            pool.run_local("slow", process_id, 0.6)
            assert pool.at_a_time("slow", 100) == 1
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_cores_are_free_that_nobody_works_on(monkeypatch):
    """The work of this process does not count as load of others; without a measurement all cores are free."""
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(cpu_load, "busy_seconds", lambda: next(clock))
    monkeypatch.setattr(cpu_load.time, "monotonic", iter([0.0, 2.0]).__next__)
    monkeypatch.setattr(cpu_load.time, "process_time", iter([0.0, 2.0]).__next__)
    monkeypatch.setattr(cpu_load.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    load = cpu_load.CpuLoad()
    assert load.free() == 8.0
    with load.watched():
        pass
    assert load.free() == 7.5  # 3 s of work in 2 s, 2 s of them ours
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    assert load.free() == 2.0  # this process may use two of the host's eight
