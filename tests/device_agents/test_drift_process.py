"""Drift of a real agent process, over a real mosquitto, to a real controller, its commands and its API."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from converters import convert
from edgekit.bundle.recipe import Recipe
from edgekit.clock import SystemClock
from edgekit.controller.operations import Operations
from edgekit.controller.web import WebOptions
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.values import RolloutState
from edgekit.state import Role
from edgekit.trust.keys import generate_key
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.mosquitto import free_port, running_mosquitto
from tests.simulators.web_client import Client
from tests.simulators.web_fleet import served

TRAINED, CONVERTED = 700, 700


def images() -> tuple[np.ndarray, np.ndarray]:
    """The digits in a fixed order by chance: neighbours in the file are of one writer."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1), y[order]


def digits_bundle(folder: Path) -> Path:
    """A linear model of the digits, converted with data that it was not trained on."""
    x, y = images()
    fitted = LogisticRegression(max_iter=200).fit(x[:TRAINED].reshape(-1, 64), y[:TRAINED])
    weights = {
        "flat": np.array([-1, 64], np.int64),
        "w": fitted.coef_.T.astype(np.float32),
        "b": fitted.intercept_.astype(np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "digits",
        [info("x", TensorProto.FLOAT, ["n", 8, 8, 1])],
        [info("scores", TensorProto.FLOAT, ["n", 10])],
        tensors,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "digits.onnx"
    )
    part = slice(TRAINED, TRAINED + CONVERTED)
    np.savez(folder / "data.npz", x=x[part], y=y[part])
    (report,) = convert(
        folder / "digits.onnx",
        targets=["x86-64"],
        runtime="onnxruntime",
        recipe=Recipe(),
        data=folder / "data.npz",
        accept_unproven=True,
        output=folder / "made",
    )
    return Path(report.bundle)


def ask(agent: AgentProcess, image: np.ndarray) -> None:
    """Send one request over HTTP."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 8, 8, 1], "data": image.reshape(-1).tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{agent.url}/v2/models/digits/infer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


async def ask_all(agent: AgentProcess, rows: np.ndarray) -> None:
    for row in rows:
        await asyncio.to_thread(ask, agent, row)


def command(folder: Path, *words: str) -> str:
    """The output of a command of `edgekit`, run as a process."""
    config = folder / "edgekit.toml"
    config.write_text(f'fleet = "{FLEET}"\ndatabase = "sqlite:///{folder / "fleet.db"}"\n')
    code = "import sys; from edgekit.cli.main import main; sys.argv[0] = 'edgekit'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.soak
async def test_a_device_reports_that_its_inputs_changed(tmp_path: Path) -> None:
    """Held-out images raise nothing; inverted ones are an alarm in the list, the device's view, the API and metrics.

    The agent is killed meanwhile: it knows the drift again, and tells no news. An operator ends the alarm.
    """
    port, bundle = free_port(), digits_bundle(tmp_path)
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\n"
    with running_mosquitto(tmp_path, config, port):
        async with ControlSide(tmp_path, f"mqtt://127.0.0.1:{port}") as side:
            side.repository.add_model("digits")
            publish(side.store, side.repository, bundle)
            folder = tmp_path / "pi-1"
            folder.mkdir()
            generate_key(folder / "device.key")
            (folder / "root.json").write_bytes(side.root)
            (folder / "agent.toml").write_text(
                f'device = "pi-1"\nfleet = "{FLEET}"\ntarget = "x86-64"\nbroker = "{side.url}"\nhttp = "127.0.0.1:0"\n'
                "drift_seconds = 0.0001\nprobation_seconds = 0.1\n"
            )
            pem = (folder / "device.pub").read_text()
            side.state.devices.enroll(Device("pi-1", "x86-64", pem, enrolled=side.clock.wall()))
            agent = AgentProcess(folder)
            await agent.start()
            try:
                await drifting(side, agent)
            finally:
                await agent.kill()


async def drifting(side: ControlSide, agent: AgentProcess) -> None:
    x, _ = images()
    live, state = x[TRAINED + CONVERTED :], side.state
    side.start("digits", "1.0.0", "x86-64")
    await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
    await ask_all(agent, live[:250])
    assert "edgekit_model_drift_samples" in metrics(agent)
    assert 'edgekit_model_drifting{model="digits"} 0' in metrics(agent)
    assert state.alarms.all() == []

    await ask_all(agent, 1 - live[:40])
    await side.until(lambda: any(one.kind == "drift.input.x" for one in state.alarms.all()))
    (event,) = [one for one in state.devices.events("pi-1", 50) if one.error == "input.x"]
    assert (event.kind, event.model, event.detail["subject"]) == ("drift", "digits", "input.x")
    assert event.detail["samples"] <= 300
    listed = command(side.folder, "alarm", "list", "--device", "pi-1")
    assert "drift.input.x" in listed
    assert "of the calibration data" in command(side.folder, "device", "show", "pi-1")
    operations = Operations(state, side.reader(), SystemClock())
    token = state.operators.add("ann", Role.VIEWER, side.clock.wall())
    with served(operations, WebOptions(), 0) as url:
        found = await asyncio.to_thread(lambda: Client(url, token=token).get("/api/v1/alarms").json())
    assert "drift.input.x" in json.dumps(found)

    await agent.kill()
    await agent.start()
    await ask_all(agent, 1 - live[:3])
    assert 'edgekit_model_drifting{model="digits"} 0' not in metrics(agent)
    assert len([one for one in state.devices.events("pi-1", 50) if one.error == "input.x"]) == 1
    ended = json.loads(command(side.folder, "alarm", "end", "pi-1", "--model", "digits", "--json"))
    assert "drift.input.x" in ended["ended"]
    assert [one for one in state.alarms.all() if one.kind.startswith("drift.")] == []


def metrics(agent: AgentProcess) -> str:
    with urllib.request.urlopen(f"{agent.url}/metrics", timeout=60) as answer:
        return answer.read().decode()
