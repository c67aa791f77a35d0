"""A board with 256 MB: an agent with LiteRT alone, whose process may use 96 MB, runs a model of 1 MB and updates it.

The limit is a memory cgroup, version 1 or 2, which needs root. Broker and controller run outside of it.
"""

import asyncio
import contextlib
import itertools
import os
import stat
import sys
from pathlib import Path

import flatbuffers
import msgspec
import numpy as np
import pytest

from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.runtimes.litert import LiteRTRuntime
from edgekit.tensors import DType, TensorSpec
from tests.device_agents.update.test_kill import ask_all_the_time, enroll, roll_out, until
from tests.simulators.control import ControlSide
from tests.simulators.small_models import SCORES, X, write_files

pytestmark = pytest.mark.soak

LIMIT_BYTES = 96 * 1024**2
WIDTH = 512  # one layer has 512 * 512 float32 weights: 1 MiB
VERSION_1, VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
ONLY_LITERT = "import sys\nsys.modules['onnxruntime'] = None  # as where it is not installed\n"


def dense_model(seed: int) -> bytes:
    """A .tflite of three dense layers, from 3 values over WIDTH and WIDTH to 3."""
    from ai_edge_litert import schema_py_generated as schema

    rng, sizes = np.random.default_rng(seed), (3, WIDTH, WIDTH, 3)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    graph.tensors, graph.operators = [], []

    def tensor(name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        one, buffer = schema.TensorT(), schema.BufferT()
        if data is not None:
            buffer.data = np.frombuffer(data.astype(np.float32).tobytes(), np.uint8)
        one.name, one.shape, one.type, one.buffer = name, list(shape), schema.TensorType.FLOAT32, len(model.buffers)
        model.buffers.append(buffer)
        graph.tensors.append(one)
        return len(graph.tensors) - 1

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version, model.operatorCodes = 1, [code]
    before = tensor("x", (1, 3))
    graph.inputs = [before]
    for at, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        layer, after = schema.OperatorT(), tensor(f"h{at}", (1, narrow))
        weights = tensor(f"w{at}", (narrow, wide), rng.normal(0, wide**-0.5, (narrow, wide)))
        layer.opcodeIndex, layer.inputs, layer.outputs = 0, [before, weights, -1], [after]
        layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        layer.builtinOptions = schema.FullyConnectedOptionsT()
        graph.operators.append(layer)
        before = after
    graph.outputs, graph.name = [before], "main"
    builder = flatbuffers.Builder(2 * 1024**2)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def publish_dense(side: ControlSide, version: str, seed: int) -> None:
    folder, data = side.folder / "made" / version, dense_model(seed)
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(data)
    x = np.array([[3, 0, 0]], np.float32)
    (answer,) = LiteRTRuntime(folder / "model.tflite").run({"x": x}).values()
    write_files(
        folder,
        model=("model.tflite", data),
        golden=write_golden({"x": x}, {"scores": answer}),
        identity={"name": "small", "version": version, "target": "x86-64", "runtime": "litert"},
        inputs=(Binding(X, TensorSpec("x", DType.FLOAT32, (1, 3))),),
        outputs=(Binding(SCORES, TensorSpec("h2", DType.FLOAT32, (1, 3))),),
        max_abs=1e-4,
        samples=1,
    )
    publish(side.store, side.repository, folder)


@contextlib.contextmanager
def memory_cgroup(limit: int):
    """A cgroup with a limit of memory, without swap; skips the test where there is none to have."""
    if os.geteuid() != 0:
        pytest.skip("a memory cgroup needs root")
    name, values = f"edgekit-test-{os.getpid()}", {"memory.max": limit, "memory.swap.max": 0}
    root = VERSION_2
    if VERSION_1.is_dir():
        root, values = VERSION_1, {"memory.limit_in_bytes": limit, "memory.swappiness": 0}
    folder = root / name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {root}: {error}")
    try:
        for file, value in values.items():
            try:
                (folder / file).write_text(str(value))
            except OSError as error:
                if "swap" not in file:  # a kernel without accounting of swap has no such file
                    pytest.skip(f"the memory of a cgroup cannot be limited here: {file}: {error}")
        yield folder
    finally:
        folder.rmdir()


def peak_bytes(group: Path) -> int:
    """The most memory that the cgroup has used, its page cache included; 0 where the kernel does not say."""
    found = [group / name for name in ("memory.max_usage_in_bytes", "memory.peak") if (group / name).exists()]
    return int(found[0].read_text()) if found else 0


def kills(group: Path) -> int:
    """How many of its processes the kernel ended for want of memory."""
    found = next(group / name for name in ("memory.oom_control", "memory.events") if (group / name).exists())
    return sum(int(line.split()[1]) for line in found.read_text().splitlines() if line.startswith("oom_kill "))


async def test_an_agent_with_litert_alone_updates_a_model_within_96_mb(tmp_path):
    """Start, answers, download, self-test, switch and probation in 96 MB, and nothing is ended for want of memory."""
    with memory_cgroup(LIMIT_BYTES) as group:
        python, site = tmp_path / "python", tmp_path / "site"
        python.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {sys.executable} "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        site.mkdir()
        (site / "sitecustomize.py").write_text(ONLY_LITERT)
        async with (
            await start_broker("127.0.0.1", 0, tmp_path / "broker", kind="mosquitto") as broker,
            ControlSide(tmp_path, broker.url) as side,
        ):
            agent, answers = enroll(side), set()
            agent.python = str(python)
            agent.environ["PYTHONPATH"] = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
            publish_dense(side, "1.0.0", 1)
            publish_dense(side, "1.1.0", 2)
            await agent.start()
            asking = asyncio.ensure_future(ask_all_the_time(agent, answers))
            try:
                for version in ("1.0.0", "1.1.0"):
                    await roll_out(side, version)
                    await until(lambda version=version: version in answers, side)
                (facts,) = (view.facts for view in side.state.devices.views(side.clock.wall(), 90.0))
                assert "CPUExecutionProvider" not in msgspec.json.encode(facts).decode()  # LiteRT alone
                assert (group / "cgroup.procs").read_text().split(), "the agent does not run in the cgroup"
                assert kills(group) == 0
                peak = peak_bytes(group)
                print(f"peak: {peak / 1e6:.1f} MB")
                assert peak <= LIMIT_BYTES
            finally:
                asking.cancel()
                await agent.end()
