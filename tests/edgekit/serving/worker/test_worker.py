"""A runtime in a worker process: the same answers, restarts after crashes, and no harm to the agent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import Manifest
from edgekit.errors import DataError, RuntimeLoadError
from edgekit.runtimes import open_runtime
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.queue import OverloadedError
from edgekit.serving.worker import shared_memory
from edgekit.serving.worker.errors import WorkerCrashedError, WorkerRestartingError
from edgekit.serving.worker.loader import Loader
from edgekit.serving.worker.runtime import (
    STABLE_SECONDS,
    Backoff,
    WorkerRuntime,
)
from edgekit.serving.worker.shared_memory import SharedTensors, Tensor, WorkerLostError, shared_file
from edgekit.tensors import DType
from tests.simulators import crashing
from tests.simulators.small_models import SURE, identity_bundle, onnx_bundle, softmax


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return onnx_bundle(tmp_path, batch=None)


def opened(manifest: Manifest, folder: Path, **kwargs) -> WorkerRuntime:
    return WorkerRuntime(manifest, folder, loader=crashing.LOADER, **kwargs)


def demand(number: float) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 3), number, np.float32)}


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- shared memory


def test_tensors_of_every_kind_come_back_as_they_went() -> None:
    """Arrays of all dtypes, without rows or axes, survive, also when the memory grows on either side."""
    here = SharedTensors(shared_file())
    there = SharedTensors(os.dup(here._fd))
    for rows in (0, 1, 3, 50_000):
        arrays = {d.value: np.ones((rows, 2), d.numpy) for d in DType if d is not DType.BYTES}
        arrays["bytes"] = np.array([[b"a", "é".encode()]] * rows, object).reshape(rows, 2)
        arrays["scalar"] = np.float32(3).reshape(())
        tensors, end = here.write(arrays)
        for found in (there.read(tensors, copy=True), here.read(there.write(arrays, end)[0], copy=True)):
            for name, value in arrays.items():
                assert found[name].dtype == value.dtype
                np.testing.assert_array_equal(found[name], value)
    here.close()
    there.close()


@pytest.mark.parametrize(
    "lie",
    [
        Tensor("x", "float32", (1 << 40,)),
        Tensor("x", "float32", (4,), offset=1 << 40),
        Tensor("x", "float32", (4,), offset=-8),
        Tensor("x", "float31", (4,)),
        Tensor("x", "bytes", (3,), items=(b"a",)),
        Tensor("x", "float32", (-1, -4)),
    ],
)
def test_what_cannot_be_is_not_read(lie: Tensor) -> None:
    """Wrong locations raise an error; nothing outside the shared memory is read."""
    memory = SharedTensors(shared_file())
    memory.write({"y": np.zeros(64, np.float32)})
    with pytest.raises(WorkerLostError, match="'x' is outside the shared memory"):
        memory.read([lie], copy=True)
    memory.close()


def test_shared_memory_cannot_be_cut_off() -> None:
    """The memory cannot be shrunk, because that would end the agent with SIGBUS."""
    fd = shared_file()
    os.ftruncate(fd, 8192)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(fd, 10)
    os.close(fd)


# --- the process


def test_answers_are_those_of_the_runtime_itself(manifest, tmp_path) -> None:
    """Answers, specs and provider are the same; errors keep their class, and memory is the worker's."""
    plain, isolated = open_runtime(manifest, tmp_path), opened(manifest, tmp_path)
    try:
        assert (isolated.inputs, isolated.outputs) == (plain.inputs, plain.outputs)
        assert isolated.provider == plain.provider
        assert isolated.providers == crashing.Crashing.providers
        for rows in (1, 7, 0, 20_000):
            x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
            found, expected = isolated.run({"x": x}), plain.run({"x": x})
            assert list(found) == list(expected)
            for name in found:
                np.testing.assert_array_equal(found[name], expected[name])
        with pytest.raises(DataError, match="input 'x' is missing"):
            isolated.run({})
        with pytest.raises(RuntimeLoadError, match="the runtime failed") as caught:
            isolated.run(demand(crashing.REFUSE))
        assert caught.value.advice == "Try another."
        assert isolated.memory_bytes() > 5 * 2**20
        pid = isolated.pid
    finally:
        isolated.close()
    assert not is_there(pid)
    assert isolated.memory_bytes() == 0
    with pytest.raises(RuntimeLoadError, match="closed"):
        isolated.run(demand(0))


def test_an_answer_does_not_change_with_the_next_run(tmp_path) -> None:
    """Answers stay right even when a model returns its inputs, whose memory is used again."""
    manifest = identity_bundle(tmp_path, name="same", dtypes=("float32", "int64"))
    isolated = WorkerRuntime(manifest, tmp_path)
    ones, twos = ({"float32": np.full((1, 2), n, np.float32), "int64": np.full((1, 2), n)} for n in (1, 2))
    first = isolated.run(ones)
    isolated.run(twos)
    np.testing.assert_array_equal(first["float32_out"], ones["float32"])
    np.testing.assert_array_equal(first["int64_out"], ones["int64"])
    isolated.close()


@pytest.mark.parametrize(
    ("how", "says"),
    [(crashing.SEGFAULT, "died of SIGSEGV"), (crashing.RAISE, "ended with status 1"), (crashing.EXIT, "status 7")],
)
def test_a_crash_fails_one_request_and_costs_one_restart(manifest, tmp_path, how, says) -> None:
    """The running request fails with the cause; the next is answered by a new process."""
    isolated = opened(manifest, tmp_path)
    before = isolated.pid
    with pytest.raises(WorkerCrashedError, match=says):
        isolated.run(demand(how))
    until(lambda: isolated.restarts == 1)
    np.testing.assert_allclose(isolated.run({"x": SURE})["scores"], softmax(SURE), atol=1e-6)
    assert isolated.pid != before
    isolated.close()


def test_a_hanging_model_is_ended_at_its_time_limit(manifest, tmp_path) -> None:
    """A run that takes too long is ended, even when native code blocks the interpreter."""
    isolated = opened(manifest, tmp_path, run_seconds=0.3)
    before = isolated.pid
    with pytest.raises(WorkerCrashedError, match=r"was ended because it took over 0\.3 s"):
        isolated.run(demand(crashing.HANG))
    assert not is_there(before)
    until(lambda: isolated.restarts == 1)
    isolated.run({"x": SURE})
    isolated.close()


def test_crashes_in_a_row_are_started_again_later_and_later() -> None:
    """The waits are 0, 1, 2, 4 ... 60 s, and 0 again after a stable minute."""
    backoff, now, waits = Backoff(), 0.0, []
    for _ in range(9):
        backoff.started(now)
        now += 1.0
        waits.append(backoff.crashed(now))
        now += waits[-1]
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    backoff.started(now)
    assert backoff.crashed(now + STABLE_SECONDS) == 0


def test_while_it_starts_anew_requests_are_told_when_to_come_back(manifest, tmp_path) -> None:
    """After two crashes in a row, no request hangs, and Retry-After is the time of the next start."""
    isolated = opened(manifest, tmp_path, backoff=Backoff(first_seconds=30.0))
    for restarts in (1, 1):
        with pytest.raises(WorkerCrashedError):
            isolated.run(demand(crashing.SEGFAULT))
        until(lambda n=restarts: isolated.restarts == n)
    with pytest.raises(WorkerRestartingError, match="being restarted") as caught:
        isolated.run({"x": SURE})
    assert isinstance(caught.value, OverloadedError)
    assert 20 < caught.value.retry_after_seconds <= 30
    isolated.close()
    with pytest.raises(RuntimeLoadError, match="closed"):
        isolated.run({"x": SURE})


def test_a_model_that_crashes_while_it_is_loaded_is_an_error_like_any_other(manifest, tmp_path) -> None:
    """The first load raises; a restart is tried until it works."""
    mark = tmp_path / "crash"
    mark.touch()
    options = {"crash_while": str(mark)}
    with pytest.raises(RuntimeLoadError, match="cannot be loaded: its worker died of SIGSEGV"):
        opened(manifest, tmp_path, options=options)
    mark.unlink()
    isolated = opened(manifest, tmp_path, options=options, backoff=Backoff(first_seconds=0.1))
    mark.touch()
    with pytest.raises(WorkerCrashedError):
        isolated.run(demand(crashing.SEGFAULT))
    time.sleep(0.5)
    mark.unlink()
    until(lambda: isolated.restarts == 1)
    isolated.run({"x": SURE})
    isolated.close()


def test_a_bundle_that_cannot_be_loaded_says_why(manifest, tmp_path) -> None:
    """The error has the runtime's message, and no process remains."""
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(RuntimeLoadError, match=r"model\.onnx cannot be loaded by ONNX Runtime"):
        WorkerRuntime(manifest, tmp_path)


PARENT = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from edgekit.bundle.manifest import parse_manifest
from edgekit.serving.worker.runtime import WorkerRuntime
import numpy as np
folder = Path(sys.argv[2])
manifest = parse_manifest((folder / "manifest.json").read_bytes())
made = WorkerRuntime(manifest, folder, loader=sys.argv[3])
print(made.pid, flush=True)
if len(sys.argv) > 4:
    made.run({"x": np.full((1, 3), float(sys.argv[4]), np.float32)})
sys.stdin.read()
"""


@pytest.mark.parametrize("work", [[], [str(crashing.HANG)]], ids=["idle", "hanging in native code"])
def test_a_worker_dies_with_its_agent(manifest, tmp_path, work) -> None:
    """The worker ends with the agent, however the agent ends and whatever the worker does."""
    command = [sys.executable, "-c", PARENT, json.dumps(sys.path), str(tmp_path), crashing.LOADER, *work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as agent:
        pid = int(agent.stdout.readline())
        if work:
            until(lambda: "nanosleep" in Path(f"/proc/{pid}/wchan").read_text() or _sleeps(pid))
        assert is_there(pid)
        agent.send_signal(signal.SIGKILL)
        agent.wait(60)
        until(lambda: not is_there(pid))


def _sleeps(pid: int) -> bool:
    time.sleep(0.3)  # where the system does not say what a process waits for
    return True


# --- in the service


async def test_a_crashing_model_does_not_reach_the_service(manifest, tmp_path) -> None:
    """Other models answer, the running request fails with the cause, and later requests are answered."""
    other = onnx_bundle(tmp_path / "other", name="other")

    def load(manifest: Manifest, folder: Path):
        return opened(manifest, folder) if manifest.name == "small" else open_runtime(manifest, folder)

    async with InferenceService(load=load) as service:
        await service.activate("small", manifest, tmp_path)
        await service.activate("other", other, tmp_path / "other")
        with pytest.raises(WorkerCrashedError, match="died of SIGSEGV"):
            await service.infer("small", demand(crashing.SEGFAULT))
        assert (await service.infer("other", {"x": SURE})).version == "1.0.0"
        for _ in range(100):
            try:
                assert (await service.infer("small", {"x": SURE})).version == "1.0.0"
                break
            except OverloadedError:
                await asyncio.sleep(0.1)
        else:
            pytest.fail("it never came back")
        assert service.counters()["small"]["runtime_errors"] == 1
        assert service.gauges()["small"]["restarts"] == 1


async def test_isolation_is_a_setting_of_the_model(manifest, tmp_path) -> None:
    """`process` isolates, its memory is what counts for the budget; `auto` isolates GPU providers alone."""
    async with InferenceService(options=ModelOptions(isolation="process")) as service:
        await service.activate("small", manifest, tmp_path)
        session = service._session("small")
        assert isinstance(session.runtime, WorkerRuntime)
        pid = session.runtime.pid
        for _ in range(5):  # however fast it is: on the event loop, its hanging would be everyone's
            await service.infer("small", {"x": SURE})
        assert session._inline_bytes == -1
        assert (await service.infer("small", {"x": SURE})).parameters["edgekit_route"] == "local"
        assert service.gauges()["small"]["memory_bytes"] > 5 * 2**20
    assert not is_there(pid)
    cuda = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    for isolation, providers, isolated in (
        ("auto", None, False),
        ("auto", cuda, True),
        ("thread", cuda, False),
        ("process", None, True),
    ):
        loader = Loader(lambda _, i=isolation: ModelOptions(isolation=i), providers=providers)
        assert loader.is_isolated(manifest) == isolated


def test_messages_are_bounded() -> None:
    """A message with a length of gigabytes ends the worker and allocates nothing."""
    import socket

    ours, theirs = socket.socketpair()
    theirs.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(WorkerLostError, match="sent a message of 4294967295 bytes"):
        shared_memory.Channel(ours).receive(1.0)
    theirs.sendall(b"\x02\x00\x00\x00\xc1\xc1")
    with pytest.raises(WorkerLostError, match="message cannot be read"):
        shared_memory.Channel(ours).receive(1.0)
    theirs.close()
    with pytest.raises(WorkerLostError, match="it has ended"):
        shared_memory.Channel(ours).receive(1.0)
    ours.close()


def test_the_systems_kill_is_named_for_what_it_mostly_is(manifest, tmp_path) -> None:
    """A worker that was killed by others was most likely out of memory."""
    isolated = opened(manifest, tmp_path)
    os.kill(isolated.pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashedError, match="died of SIGKILL, probably because the machine ran out of memory"):
        isolated.run({"x": SURE})
    isolated.close()


@pytest.mark.soak
def test_many_crashes_leave_nothing_behind(manifest, tmp_path) -> None:
    """A hundred restarts and loads that fail: as many open files and threads as before, and no dead children.

    Run: pytest -m soak tests/edgekit/serving/worker/test_worker.py
    """

    broken = onnx_bundle(tmp_path / "broken", name="broken")
    (tmp_path / "broken" / "model.onnx").write_bytes(b"nonsense")
    isolated = opened(manifest, tmp_path, backoff=Backoff(0.01, 0.01))

    def left() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def crash() -> None:
        before = isolated.restarts
        with pytest.raises(WorkerCrashedError):
            isolated.run(demand(crashing.SEGFAULT))
        until(lambda: isolated.restarts > before)
        with pytest.raises(RuntimeLoadError):
            WorkerRuntime(broken, tmp_path / "broken")

    crash()
    before = left()
    for _ in range(100):
        crash()
    until(lambda: left()[1] <= before[1])
    assert left()[0] <= before[0]
    isolated.run({"x": SURE})
    isolated.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
