"""The agent with its aarch64 wheels on an emulated Pi 4 and Pi 5, with broker and clients on this host.

Run: make arm && make test-arm. Only the instructions are emulated: these tests do not show the speed of a board.
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
from edgekit.rollout.values import RolloutState
from edgekit.runtimes import open_runtime
from edgekit.trust.keys import generate_key
from tests.arm import prepare
from tests.conformance.test_tritonclient import SCRIPTS, bundles
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.conv_models import residual
from tests.simulators.models import saved

# On the second board each model runs in its own process: an emulated child of an emulated agent.
BOARDS = {"raspberry-pi-4": ("cortex-a72", "thread"), "raspberry-pi-5": ("cortex-a76", "process")}
RUNTIMES = {"litert": "model.tflite", "onnxruntime": "model.onnx"}
PATIENCE_SECONDS = 300.0
ROWS, SHAPE = 8, (3, 16, 16)  # input of `residual`

pytestmark = [
    pytest.mark.arm,
    pytest.mark.soak,
    pytest.mark.heavy,
    pytest.mark.skipif(not prepare.is_made(), reason="no aarch64 wheels; download them: make arm"),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A residual network as float and int8 for both runtimes, by (name, target).

    The network has no softmax: int8 ONNX files compute it in float32, whose last bit differs between processors.
    """
    folder = tmp_path_factory.mktemp("converted")
    graph = residual().model
    assert graph.graph.node.pop().op_type == "Softmax"
    graph.graph.output[0].name = "head"
    model = saved(graph, folder / "residual.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(200, *SHAPE)).astype(np.float32))
    folders = {}
    for runtime in RUNTIMES:
        for recipe in ("float32", "int8"):
            name = f"{runtime}-{recipe}"
            command = [str(Path(sys.executable).with_name("edgekit")), "convert", str(model), "--data"]
            command += [str(folder / "data.npz"), "--recipe", recipe, "--runtime", runtime, "--name", name]
            command += ["--max-drop", "1.0", "--accept-unproven", "--no-cache", "--output", str(folder / name)]
            command += [word for target in BOARDS for word in ("--target", target)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-2000:]
            folders.update({(name, target): folder / name / f"{name}-1.0.0-{target}" for target in BOARDS})
    return folders


def for_target(folder: Path, target: str, version: str = "1.0.0") -> Manifest:
    """Rewrite the manifest of a bundle for another target and version."""
    manifest = msgspec.structs.replace(_manifest(folder), target=target, version=version)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return manifest


def _manifest(folder: Path) -> Manifest:
    return parse_manifest((folder / MANIFEST_NAME).read_bytes())


def enroll(side: ControlSide, target: str) -> AgentProcess:
    """Enroll an emulated agent with its own folder."""
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
    while waiting := [r for r in side.state.rollouts.all() if r.state is not RolloutState.FINISHED]:
        assert time.monotonic() < end, waiting
        assert not any(rollout.state is RolloutState.PAUSED for rollout in waiting), waiting
        await asyncio.sleep(0.1)


def ask(url: str, manifest: Manifest, row: np.ndarray) -> np.ndarray:
    """The answer to one row over HTTP. JSON preserves every bit of a float32."""
    spec = manifest.inputs[0].spec
    tensor = {"name": spec.name, "shape": list(row.shape), "datatype": "FP32", "data": row.ravel().tolist()}
    request = urllib.request.Request(
        f"{url}/v2/models/{manifest.name}/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        output = json.loads(answer.read())["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def compare(url: str, folder: Path) -> None:
    """Check that an int8 model answers bit-identically on both machines, and a float model within 1e-5 of its range."""
    manifest = _manifest(folder)
    rows = np.random.default_rng(1).normal(size=(ROWS, 1, *SHAPE)).astype(np.float32)
    emulated = np.stack([ask(url, manifest, row) for row in rows])
    runtime = open_runtime(manifest, folder)
    try:
        native = np.stack(
            [runtime.run({manifest.inputs[0].spec.name: row})[manifest.outputs[0].spec.name] for row in rows]
        )
    finally:
        runtime.close()
    assert np.ptp(native) > 0
    if manifest.name.endswith("int8"):
        assert np.array_equal(emulated, native), f"{manifest.name}: {np.abs(emulated - native).max()}"
    else:
        assert np.abs(emulated - native).max() <= 1e-5 * np.ptp(native), manifest.name


@pytest.mark.parametrize("target", BOARDS)
async def test_an_arm_agent_follows_a_rollout_and_answers_as_this_machine_does(
    target: str, converted: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """The agent starts, installs four models, updates them, installs four more, and answers again after SIGKILL.

    Its answers equal those of x86-64, and the checks of tritonclient pass from this host.
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
            has_client = await _tritonclient(agent.url)
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
    if not has_client:
        pytest.skip("only tritonclient was not run; make its environment: python -m benchmarks.peers tritonclient")


async def _tritonclient(url: str) -> bool:
    """Run the checks of tritonclient. Returns False if its environment does not exist."""
    python = peers.python_of("tritonclient")
    if python is None:
        return False
    process = await asyncio.create_subprocess_exec(
        *(str(python), str(SCRIPTS["http"]), url.removeprefix("http://")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().count("ok ") == 13, output.decode()
    return True
