"""Real mosquitto, controller, agent process and cloud tier, and `edgekit collect`: each sample arrives exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from device_agents.spool.rules import is_id
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.values import RolloutState
from edgekit.sealing.message_keys import add_message_key
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.trust.keys import generate_key, public_path
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.mosquitto import running_mosquitto
from tests.simulators.ports import free_port
from tests.simulators.small_models import onnx_bundle, softmax

TARGET = "x86-64"
UNSURE = [np.array([[0.1 * i, 0.3, 0.2]], np.float32) for i in range(8)]
LONG_SECONDS = 40


@contextlib.asynccontextmanager
async def cloud_tier(folder: Path) -> AsyncIterator[str]:
    """A cloud tier whose model decides for the smallest value, so that it never agrees; its URL."""
    bundle = onnx_bundle(folder, name="small", batch=None, gain=-10.0)
    models = await CloudModels.open(["small"], lambda name: (bundle, folder), threads=1)
    async with serve(App(models, max_request_bytes=2**20), http="127.0.0.1:0") as bound:
        yield bound.url
    await models.close()


def enroll(side: ControlSide, cloud: str) -> AgentProcess:
    folder = side.folder / "pi-1"
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(side.root)
    public = public_path(add_message_key(side.folder / "keys"))
    (folder / "samples.pub").write_bytes(public.read_bytes())
    (folder / "agent.toml").write_text(
        f'device = "pi-1"\nfleet = "{FLEET}"\ntarget = "{TARGET}"\nbroker = "{side.url}"\nhttp = "127.0.0.1:0"\n'
        f'probation_seconds = 0.1\ncloud_url = "{cloud}"\nsample_key = "samples.pub"\n'
        "collect_per_day = 0\ncollect_bytes_per_day = 0\n"
    )
    pem = (folder / "device.pub").read_text()
    side.state.devices.enroll(Device("pi-1", TARGET, pem, enrolled=side.clock.wall()))
    return AgentProcess(folder)


async def ask(agent: AgentProcess, x: np.ndarray, route: str = "auto") -> dict[str, Any]:
    """The parameters of the answer to one request."""
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor], "parameters": {"edgekit_route": route}}).encode()
    request = urllib.request.Request(f"{agent.url}/v2/models/small/infer", body)

    def send() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: dict[str, Any] = json.loads(answer.read())["parameters"]
            return found

    return await asyncio.to_thread(send)


async def edgekit(folder: Path, *words: str) -> Any:
    """Run a command in `folder` as a process; its JSON."""
    (folder / "edgekit.toml").write_text(f'fleet = "{FLEET}"\ndatabase = "sqlite:///fleet.db"\n')
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "edgekit", *words, "--json"],
        capture_output=True,
        cwd=folder,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def spooled(agent: AgentProcess) -> set[str]:
    """The samples on the device, without what a killed agent had not written to the end."""
    return {name for name in agent.files() if name.startswith("spool/") and is_id(name.removeprefix("spool/"))}


# The agent's process starts three times, and the broker twice: about 15 s.
async def test_unsure_requests_reach_the_operator_once_whatever_dies(tmp_path: Path) -> None:
    """An operator asks for samples, the broker is away, the agent is killed twice: each is collected once.

    What the client keeps local stays local. The file is data for `edgekit convert`.
    """
    port = free_port()
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
    async with contextlib.AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(cloud_tier(tmp_path / "cloud"))
        broker = contextlib.ExitStack()
        broker.enter_context(running_mosquitto(tmp_path, config, port))
        stack.callback(lambda: broker.close())
        side = await stack.enter_async_context(ControlSide(tmp_path, f"mqtt://127.0.0.1:{port}"))
        onnx_bundle(tmp_path / "made", version="1.0.0", target=TARGET, batch=None)
        publish(side.store, side.repository, tmp_path / "made")
        agent = enroll(side, cloud)
        await agent.start()
        stack.push_async_callback(agent.kill)
        side.start("small", "1.0.0", TARGET)
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        now = side.clock.wall()
        sent = side.state.commands.add("pi-1", "collect", args={"samples": 100}, now=now, expires=now + 60)
        await side.until(lambda: side.state.commands.get("pi-1", sent.number).state == "done")
        assert side.state.commands.get("pi-1", sent.number).ok
        broker.close()
        for x in UNSURE:
            assert (await ask(agent, x))["edgekit_route"] == "cloud"
        await ask(agent, UNSURE[0], "local-only")
        await side.until(lambda: len(spooled(agent)) == len(UNSURE))
        await agent.kill()
        assert not [
            path for path in (agent.folder / "state/spool").iterdir() if UNSURE[3].tobytes() in path.read_bytes()
        ]
        await side.kill_controller()
        broker.enter_context(running_mosquitto(tmp_path, config, port))
        await side.start_controller()  # a new one connects at once; the old one would wait for up to a minute
        await side.until(lambda: side.controller.values()["connected"])
        await agent.start()
        await side.until(lambda: len(side.store.list("samples")) >= 2)
        await agent.kill()
        await agent.start()
        await side.until(lambda: not spooled(agent))

        found = await edgekit(tmp_path, "collect", "-o", "samples")
        assert (found["samples"], found["reasons"]) == (len(UNSURE), {"disagreement": len(UNSURE)})
        (file,) = found["files"]
        before = (tmp_path / file["file"]).read_bytes()
        with np.load(tmp_path / file["file"]) as table:
            rows = {tuple(x): i for i, x in enumerate(table["x"].tolist())}
            assert len(rows) == len(table["x"]) == len(UNSURE)
            for x in UNSURE:
                row = rows[tuple(x[0].tolist())]
                np.testing.assert_allclose(table["edgekit_local.scores"][row], softmax(x)[0], atol=1e-5)
                np.testing.assert_allclose(table["edgekit_cloud.scores"][row], softmax(x, -10.0)[0], atol=1e-5)
            assert set(table["edgekit_device"]) == {"pi-1"}
        again = await edgekit(tmp_path, "collect", "-o", "samples")
        assert again["files"][0]["new"] == 0
        assert (tmp_path / file["file"]).read_bytes() == before
        words = ("convert", "made/model.onnx", "--target", TARGET, "--data", file["file"], "-o", "bundles")
        await edgekit(tmp_path, *words)
        assert list((tmp_path / "bundles").glob("*/manifest.json"))
