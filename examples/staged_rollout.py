"""Roll two versions out to five simulated devices over a private broker; the second stops itself.

Prints the waves of 1.0.0, then 1.1.0 as it pauses: the devices verify their assignments and take no other version.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from edgekit import clock, controller, registry, state
from edgekit.mqtt import broker, messages, topics
from edgekit.mqtt import transport as mqtt
from edgekit.rollout import cohort
from edgekit.storage import stores
from edgekit.trust import assignment, client, envelopes, keys, repository


async def device(name, signer, link, trust):
    models, orders = {}, asyncio.Queue()
    await link.subscribe(topics.device("demo", name, "desired"), lambda message: orders.put_nowait(message.payload))
    while True:
        order = trust.verify_assignment(await orders.get(), name, "demo", time.time())
        digest, version = order.entries["digits"].sha256, order.entries["digits"].version
        models = {"digits": messages.Running(digest, version)} if version == "1.0.0" else models
        outcomes = {"digits": messages.Outcome(digest, version, "succeeded" if version == "1.0.0" else "refused")}
        said = messages.Reported(name, "demo", order.version, time.time(), order.version, models, outcomes)
        await link.publish(topics.device("demo", name, "reported"), envelopes.seal(said, signer), qos=1)


async def follow(rollouts, version, release):
    path = f"models/digits/raspberry-pi-4/{version}/manifest.json"
    entry = assignment.Entry(path, 1, f"{release:064x}", "digits", "raspberry-pi-4", version, release)
    number = rollouts.start("digits", version, {"raspberry-pi-4": entry}, now=time.time()).id
    while (now := rollouts.get(number)).state.value == "RUNNING":
        print(f"{version} wave {now.wave + 1}: {now.counts()['SUCCEEDED']} of 5 succeeded")
        await asyncio.sleep(0.3)
    print(f"{version} {now.state.value}: {now.counts()['SUCCEEDED']} of 5 succeeded. {now.reason}")


async def main(home):
    store, db = stores.open_store(f"file://{home}/registry"), state.open_fleet_state(f"sqlite:///{home}/f.db", "demo")
    root = repository.Repository(store, home / "keys").create()
    trust = client.TrustClient(home / "cache", root, lambda name: store.get(registry.metadata_name(name)))
    trust.refresh()
    parts = {"reader": registry.RegistryReader(store, root, home), "clock": clock.SystemClock(), "store": store}
    async with await broker.start_broker("127.0.0.1", 0, home / "broker") as private:
        link = mqtt.MqttTransport(private.url, client_id="all", username="controller")  # shared, to stay short
        director = keys.load_signer(keys.key_path(home / "keys", "director"))
        service = controller.Controller(fleet="demo", transport=link, state=db, director=director, **parts)
        tasks = [asyncio.create_task(service.run(stop := asyncio.Event()))]
        for name in (f"pi-{i}" for i in range(5)):
            signer = keys.generate_key(home / f"{name}.key")
            db.devices.enroll(cohort.Device(name, "raspberry-pi-4", (home / f"{name}.pub").read_text()))
            tasks.append(asyncio.create_task(device(name, signer, link, trust)))
        await follow(db.rollouts, "1.0.0", 1)
        await follow(db.rollouts, "1.1.0", 2)
        stop.set()
        await tasks[0]


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder)))
