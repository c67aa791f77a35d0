"""Bring a model to an agent over a private broker, then ask it.

The broker, the control side and the agent run in this one process. In real use each of them is a program of its own:
`edgekit broker run`, `edgekit controller run` and `edgekit-agent run`.

Prints the state of the update twice a second, and then [[2. 4. 6.]], which the model answers on the device.
"""

import asyncio
import tempfile
from pathlib import Path

import numpy as np
from onnx import parser

from device_agents.assembly.control import make_agent
from device_agents.assembly.serving import make_inference
from device_agents.facts import measure_facts
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Binding, Golden, Manifest, Tolerance, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.clock import SystemClock
from edgekit.controller.blocks import BlockService
from edgekit.controller.metadata import MetadataService
from edgekit.mqtt import topics
from edgekit.mqtt.broker import start_broker
from edgekit.mqtt.transport import MqttTransport
from edgekit.registry import publish
from edgekit.settings import AgentSettings
from edgekit.storage.stores import open_store
from edgekit.tensors import DType, TensorSpec
from edgekit.trust.assignment import Assignment, Entry, sign_assignment
from edgekit.trust.keys import generate_key, key_path, load_signer
from edgekit.trust.repository import Repository

FLEET, DEVICE, MODEL = "demo", "pi-1", "double"
DOUBLE = '<ir_version: 8, opset_import: ["": 17]> double (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }'


def make_bundle(folder: Path) -> Path:
    """A bundle as `edgekit convert` would write it: an ONNX model that doubles three numbers."""
    rows = np.eye(3, dtype=np.float32)
    files = {
        "model.onnx": ("model", parser.parse_model(DOUBLE).SerializeToString()),
        "golden.npz": ("golden", write_golden({"x": rows}, {"y": 2 * rows})),
    }
    x, y = (TensorSpec(name, DType.FLOAT32, (None, 3)) for name in ("x", "y"))
    manifest = Manifest(
        name=MODEL,
        version="1.0.0",
        target="x86-64",
        runtime="onnxruntime",
        files=tuple(file_entry(path, role, data) for path, (role, data) in files.items()),
        inputs=(Binding(x, x),),
        outputs=(Binding(y, y),),
        golden=Golden(samples=3, tolerances=(Tolerance("y", "onnxruntime", 1e-6),), decisions_match=False),
        recipe=Recipe(),
    )
    folder.mkdir()
    for path, (_, data) in files.items():
        (folder / path).write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest.canonical_bytes())
    return folder


def make_registry(home: Path) -> Entry:
    """A signed registry with the bundle in it; `root.json` is what the device trusts from the start."""
    store = open_store(f"file://{home}/registry")
    repository = Repository(store, home / "keys")
    (home / "root.json").write_bytes(repository.create())
    return publish(store, repository, make_bundle(home / "bundle")).entry


async def start_control_side(home: Path, broker_url: str) -> MqttTransport:
    """Serve the registry's metadata and blocks over MQTT."""
    store = open_store(f"file://{home}/registry")
    transport = MqttTransport(broker_url, client_id="controller", username="controller")
    shared = {"fleet": FLEET, "store": store, "transport": transport, "clock": SystemClock()}
    await BlockService(**shared, broker_budget_bytes=16 * 1024**2).start()
    await MetadataService(**shared).start()
    await transport.start()
    await transport.wait_connected(10)
    return transport


async def assign(home: Path, transport: MqttTransport, entry: Entry) -> None:
    """Tell the device what to run: a signed assignment, retained on its `desired` topic."""
    director = load_signer(key_path(home / "keys", "director"))
    assignment = Assignment(DEVICE, FLEET, 1, SystemClock().wall() + 3600, {MODEL: entry})
    payload = sign_assignment(assignment, director)
    await transport.publish(topics.device(FLEET, DEVICE, "desired"), payload, qos=1, retain=True)


async def main(home: Path) -> None:
    """The whole journey: publish, assign, update, ask."""
    entry = make_registry(home)
    generate_key(home / "device.key")
    async with await start_broker("127.0.0.1", 0, home / "broker") as broker:
        transport = await start_control_side(home, broker.url)
        settings = AgentSettings(
            device=DEVICE,
            fleet=FLEET,
            target="x86-64",
            broker=broker.url,
            key=home / "device.key",
            root=home / "root.json",
            state=home / "state",
        )
        inference, _ = make_inference(settings)
        agent = make_agent(settings, inference, measure_facts("x86-64"))
        running = asyncio.create_task(agent.run())

        await assign(home, transport, entry)
        while MODEL not in agent.states or agent.states[MODEL].outcome is None:
            await asyncio.sleep(0.5)
            print(*(state.name.value for state in agent.states.values()))

        answer = await inference.infer(MODEL, {"x": np.array([[1, 2, 3]], np.float32)})
        print(answer.outputs["y"])

        agent.stop()
        await running
        await transport.stop()
        await inference.close()


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder)))
