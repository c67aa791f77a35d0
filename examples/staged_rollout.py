"""Roll two versions out to five simulated devices over a private broker; the second rollout stops itself.

The devices are simulated: they verify their assignments, take version 1.0.0 and refuse every other one.

Prints the waves of 1.0.0, then 1.1.0 as it pauses.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from edgekit import registry
from edgekit.clock import SystemClock
from edgekit.controller import Controller
from edgekit.mqtt import messages, topics
from edgekit.mqtt.broker import start_broker
from edgekit.mqtt.transport import MqttTransport
from edgekit.rollout.cohort import Device
from edgekit.state import FleetState, open_fleet_state
from edgekit.storage.stores import open_store
from edgekit.trust.assignment import Entry
from edgekit.trust.client import TrustClient
from edgekit.trust.envelopes import seal
from edgekit.trust.keys import generate_key, key_path, load_signer
from edgekit.trust.repository import Repository

FLEET, MODEL, TARGET = "demo", "digits", "raspberry-pi-4"
DEVICES = 5


async def simulate_device(name: str, signer, transport: MqttTransport, trust: TrustClient) -> None:
    """Verify each assignment, then report success for 1.0.0 and a refusal for anything else."""
    running: dict[str, messages.Running] = {}
    assignments: asyncio.Queue[bytes] = asyncio.Queue()
    topic = topics.device(FLEET, name, "desired")
    await transport.subscribe(topic, lambda message: assignments.put_nowait(message.payload))
    while True:
        order = trust.verify_assignment(await assignments.get(), name, FLEET, time.time())
        wanted = order.entries[MODEL]
        accepted = wanted.version == "1.0.0"
        if accepted:
            running = {MODEL: messages.Running(wanted.sha256, wanted.version)}
        result = "succeeded" if accepted else "refused"
        outcomes = {MODEL: messages.Outcome(wanted.sha256, wanted.version, result)}
        report = messages.Reported(name, FLEET, order.version, time.time(), order.version, running, outcomes)
        await transport.publish(topics.device(FLEET, name, "reported"), seal(report, signer), qos=1)


async def roll_out(state: FleetState, version: str, release: int) -> None:
    """Start a rollout and print each of its waves until it ends or pauses."""
    path = f"models/{MODEL}/{TARGET}/{version}/manifest.json"
    entry = Entry(path, 1, f"{release:064x}", MODEL, TARGET, version, release)
    number = state.rollouts.start(MODEL, version, {TARGET: entry}, now=time.time()).id
    while (rollout := state.rollouts.get(number)).state.value == "RUNNING":
        print(f"{version} wave {rollout.wave + 1}: {rollout.counts()['SUCCEEDED']} of {DEVICES} succeeded")
        await asyncio.sleep(0.3)
    succeeded = rollout.counts()["SUCCEEDED"]
    print(f"{version} {rollout.state.value}: {succeeded} of {DEVICES} succeeded. {rollout.reason}")


def make_trust(home: Path) -> TrustClient:
    """A new registry in `home`, and a client that trusts its root."""
    store = open_store(f"file://{home}/registry")
    root = Repository(store, home / "keys").create()
    (home / "root.json").write_bytes(root)
    trust = TrustClient(home / "cache", root, lambda name: store.get(registry.metadata_name(name)))
    trust.refresh()
    return trust


async def main(home: Path) -> None:
    """A broker, a controller and five devices in one process, and two rollouts."""
    trust = make_trust(home)
    store = open_store(f"file://{home}/registry")
    state = open_fleet_state(f"sqlite:///{home}/fleet.db", FLEET)
    async with await start_broker("127.0.0.1", 0, home / "broker") as broker:
        transport = MqttTransport(broker.url, client_id="all", username="controller")  # shared by all, to stay short
        controller = Controller(
            fleet=FLEET,
            transport=transport,
            state=state,
            director=load_signer(key_path(home / "keys", "director")),
            reader=registry.RegistryReader(store, (home / "root.json").read_bytes(), home),
            clock=SystemClock(),
            store=store,
        )
        stop = asyncio.Event()
        controlling = asyncio.create_task(controller.run(stop))
        devices = []
        for name in (f"pi-{number}" for number in range(DEVICES)):
            signer = generate_key(home / f"{name}.key")
            state.devices.enroll(Device(name, TARGET, (home / f"{name}.pub").read_text()))
            devices.append(asyncio.create_task(simulate_device(name, signer, transport, trust)))

        await roll_out(state, "1.0.0", release=1)
        await roll_out(state, "1.1.0", release=2)

        for device in devices:
            device.cancel()
        stop.set()
        await controlling


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder)))
