"""Bring a model to an agent over a private broker, then ask it; the control side's pieces share this process.

Prints the state of the update twice a second, and then [[2. 4. 6.]], which the model answers on the device.
"""

import asyncio
import tempfile
from pathlib import Path

import numpy as np
from onnx import parser

from device_agents import assemble, facts
from edgekit import clock, registry, settings, tensors
from edgekit.bundle import golden, manifest, recipe
from edgekit.controller import blocks, metadata
from edgekit.mqtt import broker, topics
from edgekit.mqtt import transport as mqtt
from edgekit.storage import stores
from edgekit.trust import keys, repository
from edgekit.trust.assignment import Assignment, sign_assignment


async def main(home):
    (bundle := home / "bundle").mkdir()
    text = '<ir_version: 8, opset_import: ["": 17]> double (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }'
    model = parser.parse_model(text).SerializeToString()
    samples = golden.write_golden({"x": np.eye(3, dtype=np.float32)}, {"y": 2 * np.eye(3, dtype=np.float32)})
    files = (manifest.file_entry("m.onnx", "model", model), manifest.file_entry("golden.npz", "golden", samples))
    x, y = ((manifest.Binding(s, s),) for s in (tensors.TensorSpec(n, tensors.DType.FLOAT32, (None, 3)) for n in "xy"))
    rest = manifest.Golden(3, (manifest.Tolerance("y", "onnxruntime", 1e-6),), False), recipe.Recipe()
    made = manifest.Manifest("double", "1.0.0", "x86-64", "onnxruntime", files, x, y, *rest).canonical_bytes()
    for name, data in {"m.onnx": model, "golden.npz": samples, "manifest.json": made}.items():
        (bundle / name).write_bytes(data)

    store, now = stores.open_store(f"file://{home}/registry"), clock.SystemClock()
    (home / "root.json").write_bytes((owner := repository.Repository(store, home / "keys")).create())
    entry = registry.publish(store, owner, bundle).entry
    async with await broker.start_broker("127.0.0.1", 0, home / "broker") as private:
        link = mqtt.MqttTransport(private.url, client_id="controller", username="controller")
        await blocks.BlockService(fleet="demo", store=store, transport=link, clock=now, broker_budget_bytes=1).start()
        await metadata.MetadataService(fleet="demo", store=store, transport=link).start()
        await link.start()
        await link.wait_connected(10)
        keys.generate_key(home / "device.key")
        me = {"device": "pi-1", "fleet": "demo", "target": "x86-64", "broker": private.url, "state": home / "state"}
        chosen = settings.AgentSettings(key=home / "device.key", root=home / "root.json", **me)
        inference, _ = assemble.make_inference(chosen)
        agent = assemble.make_agent(chosen, inference, facts.measure_facts("x86-64"))
        running = asyncio.create_task(agent.run())
        director = keys.load_signer(keys.key_path(home / "keys", "director"))
        order = sign_assignment(Assignment("pi-1", "demo", 1, now.wall() + 3600, {"double": entry}), director)
        await link.publish(topics.device("demo", "pi-1", "desired"), order, qos=1, retain=True)
        while not (agent.states and agent.states["double"].outcome):
            await asyncio.sleep(0.5)
            print(*(state.name.value for state in agent.states.values()))
        print((await inference.infer("double", {"x": np.array([[1, 2, 3]], np.float32)})).outputs["y"])
        agent.stop()
        await asyncio.gather(running, link.stop(), inference.close())


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder)))
