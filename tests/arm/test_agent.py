"""The agent with its real aarch64 wheels, emulated as a Pi 4 and as a Pi 5, under a broker and clients of this host.

Run: make arm && make test-arm. What is emulated is the instructions: nothing here tells how fast a board is.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import peers
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.machine import State
from edgekit.runtimes import open_runtime
from edgekit.trust.keys import generate_key
from tests.arm import prepare
from tests.conformance.test_tritonclient import SCRIPTS, bundles
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.conv_models import residual
from tests.simulators.models import saved

# The second one runs each model in a process of its own: an emulated child of an emulated agent.
BOARDS = {"raspberry-pi-4": ("cortex-a72", "thread"), "raspberry-pi-5": ("cortex-a76", "process")}
RUNTIMES = {"litert": "model.tflite", "onnxruntime": "model.onnx"}
PATIENCE_SECONDS = 300.0
ROWS, SHAPE = 8, (3, 16, 16)  # of `residual`

pytestmark = [
    pytest.mark.arm,
    pytest.mark.soak,
    pytest.mark.heavy,
    pytest.mark.skipif(not prepare.is_made(), reason="there are no aarch64 wheels here; fetch them: make arm"),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A residual network, float and int8 for both runtimes, by (name, target).

    It ends before its softmax: ONNX files keep that in float32, whose last bit is another one on another processor.
    """
    folder = tmp_path_factory.mktemp("converted")
    graph = residual().model
    assert graph.graph.node.pop().op_type == "Softmax"
    graph.graph.output[0].name = "head"
    model = saved(graph, folder / "residual.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(200, *SHAPE)).astype(np.float32))
    made = {}
    for runtime in RUNTIMES:
        for recipe in ("float32", "int8"):
            name = f"{runtime}-{recipe}"
            command = [str(Path(sys.executable).with_name("edgekit")), "convert", str(model), "--data"]
            command += [str(folder / "data.npz"), "--recipe", recipe, "--runtime", runtime, "--name", name]
            command += ["--max-drop", "1.0", "--accept-unproven", "--no-cache", "--output", str(folder / name)]
            command += [word for target in BOARDS for word in ("--target", target)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-2000:]
            made.update({(name, target): folder / name / f"{name}-1.0.0-{target}" for target in BOARDS})
    return made


def for_target(folder: Path, target: str, version: str = "1.0.0") -> Manifest:
    """Let a bundle be one for `target`."""
    manifest = msgspec.structs.replace(_manifest(folder), target=target, version=version)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return manifest


def _manifest(folder: Path) -> Manifest:
    return parse_manifest((folder / MANIFEST_NAME).read_bytes())


def enroll(side: ControlSide, target: str) -> AgentProcess:
    core, isolation = BOARDS[target]
    folder = side.folder / target
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(side.root)
    (folder / "agent.toml").write_text(
        f'device = "{target}"\nfleet = "{FLEET}"\ntarget = "{target}"\nbroker = "{side.url}"\nhttp = "127.0.0.1:0"\n'
        f'socket = "e.sock"\nisolation = "{isolation}"\nprobation_seconds = 0.1\n'
    )
    public_key = (folder / "device.pub").read_text()
    side.state.devices.enroll(Device(target, target, public_key, enrolled=side.clock.wall()))
    agent = AgentProcess(folder)
    agent.python = str(prepare.interpreter(core))
    return agent


async def roll_out(side: ControlSide, target: str, models: dict[str, str]) -> None:
    """Start a rollout of each model and version, and wait until all are finished."""
    for name, version in models.items():
        side.start(name, version, target)
    end = time.monotonic() + PATIENCE_SECONDS
    while waiting := [r for r in side.state.rollouts.all() if r.state is not State.FINISHED]:
        assert time.monotonic() < end, waiting
        assert not any(rollout.state is State.PAUSED for rollout in waiting), waiting
        await asyncio.sleep(0.1)


def ask(url: str, manifest: Manifest, row: np.ndarray) -> np.ndarray:
    """One row's answer over HTTP; JSON carries every bit of a float32."""
    spec = manifest.inputs[0].spec
    tensor = {"name": spec.name, "shape": list(row.shape), "datatype": "FP32", "data": row.ravel().tolist()}
    request = urllib.request.Request(
        f"{url}/v2/models/{manifest.name}/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        output = json.loads(answer.read())["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def compare(url: str, folder: Path) -> None:
    """An int8 model answers on both machines by the same bits, a float one within 1e-5 of its range."""
    manifest = _manifest(folder)
    rows = np.random.default_rng(1).normal(size=(ROWS, 1, *SHAPE)).astype(np.float32)
    there = np.stack([ask(url, manifest, row) for row in rows])
    runtime = open_runtime(manifest, folder)
    try:
        here = np.stack(
            [runtime.run({manifest.inputs[0].spec.name: row})[manifest.outputs[0].spec.name] for row in rows]
        )
    finally:
        runtime.close()
    assert np.ptp(here) > 0
    if manifest.name.endswith("int8"):
        assert np.array_equal(there, here), f"{manifest.name}: {np.abs(there - here).max()}"
    else:
        assert np.abs(there - here).max() <= 1e-5 * np.ptp(here), manifest.name


@pytest.mark.parametrize("target", BOARDS)
async def test_an_arm_agent_follows_a_rollout_and_answers_as_this_machine_does(
    target: str, converted: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """It starts, installs four models and updates them, installs four more, and is still there after SIGKILL.

    Answers are those of x86-64; tritonclient, on this host, finds what it expects.
    """
    folders = {name: folder for (name, where), folder in converted.items() if where == target}
    small = bundles(tmp_path / "bundles")
    async with (
        await start_broker("127.0.0.1", 0, tmp_path / "broker") as broker,
        ControlSide(tmp_path, broker.url) as side,
    ):
        agent = enroll(side, target)
        await agent.start()
        try:
            for version in ("0.9.0", "1.0.0"):
                for _, folder in small.values():
                    for_target(folder, target, version)
                    publish(side.store, side.repository, folder)
                await roll_out(side, target, dict.fromkeys(small, version))
            (view,) = side.state.devices.views(side.clock.wall(), PATIENCE_SECONDS)
            assert view.facts["arch"] == "aarch64"
            assert set(view.facts["runtimes"]) == set(RUNTIMES)
            client = await _tritonclient(agent.url)
            for folder in folders.values():
                publish(side.store, side.repository, folder)
            await roll_out(side, target, dict.fromkeys(folders, "1.0.0"))
            for folder in folders.values():
                await asyncio.to_thread(compare, agent.url, folder)
            await agent.kill()
            await agent.start()
            assert await agent.ask("small") == "1.0.0"
        finally:
            await agent.end()
    if not client:
        pytest.skip("all but tritonclient passed; make its environment: python -m benchmarks.peers tritonclient")


async def _tritonclient(url: str) -> bool:
    """Whether it is there; where it is, it must be content."""
    python = peers.python_of("tritonclient")
    if python is None:
        return False
    process = await asyncio.create_subprocess_exec(
        *(str(python), str(SCRIPTS["http"]), url.removeprefix("http://")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert said.decode().count("ok ") == 13, said.decode()
    return True
