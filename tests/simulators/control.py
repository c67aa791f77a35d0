"""A control side of real components in one folder (registry, SQLite, controller), and devices with a set behaviour.

Example:
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        device = await side.device("pi-1")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from edgekit.bundle.bindings import Binding
from edgekit.bundle.manifest import MANIFEST_NAME, Golden, Manifest, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.clock import SystemClock
from edgekit.controller import Controller, ControllerOptions
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Command, Outcome, Presence, Reported, Result, Running, encode
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Transport
from edgekit.registry import RegistryReader, publish
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.plan import RolloutPlan
from edgekit.rollout.values import Rollout
from edgekit.state import open_fleet_state
from edgekit.storage.stores import open_store
from edgekit.tensors import DType, TensorSpec
from edgekit.trust.envelopes import open_envelope, seal
from edgekit.trust.keys import generate_key, key_path, load_signer
from edgekit.trust.repository import Repository
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect

FLEET = "test"
TARGET = "raspberry-pi-4"
PATIENCE_SECONDS = 120.0


def write_bundle(folder: Path, name: str, version: str, target: str = TARGET, model: bytes = b"model") -> Manifest:
    """Write a bundle that the registry accepts, although no runtime can load it."""
    folder.mkdir(parents=True)
    files = {"model.tflite": ("model", model), "golden.npz": ("golden", b"golden " + version.encode())}
    spec = TensorSpec("x", DType.FLOAT32, (None, 3))
    manifest = Manifest(
        name=name,
        version=version,
        target=target,
        runtime="litert",
        files=tuple(file_entry(path, role, data) for path, (role, data) in files.items()),
        inputs=(Binding(spec, spec),),
        outputs=(Binding(spec, spec),),
        golden=Golden(1, (), False),
        recipe=Recipe(),
    )
    for path, (_, data) in files.items():
        (folder / path).write_bytes(data)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return manifest


class FakeDevice:
    """A device that accepts every assignment; `behaviour` is ``succeed``, ``refuse`` or ``silent``."""

    def __init__(self, broker: MemoryBroker, folder: Path, name: str) -> None:
        self.name = name
        self.behaviour = "succeed"
        self.signer = generate_key(folder / f"{name}.key")
        self.transport = MemoryTransport(broker, name)
        self.number = 0
        self.versions: list[int] = []
        self.wanted: dict[str, str] = {}
        self.models: dict[str, Running] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.answers: list[bytes] = []
        self.commands: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect, subscribe, and publish presence and a report."""
        await connect(self.transport)
        await self.transport.subscribe(topics.device(FLEET, self.name, "desired"), self._assigned)
        await self.transport.subscribe(topics.device(FLEET, self.name, "command"), self._commanded)
        await self.transport.subscribe(topics.answer(FLEET, self.name), lambda m: self.answers.append(m.payload))
        presence = encode(Presence(online=True, session=1))
        await self.transport.publish(topics.device(FLEET, self.name, "presence"), presence, qos=1, retain=True)
        await self.report()

    async def report(self, **fields: object) -> None:
        """Publish a report; `fields` override its values."""
        self.number += 1
        values = {
            "device": self.name,
            "fleet": FLEET,
            "number": self.number,
            "at": time.time(),
            "assignment": max(self.versions, default=0),
            "models": self.models,
            "outcomes": self.outcomes,
            **fields,
        }
        await self.say("reported", seal(Reported(**values), self.signer), retain=True)

    async def say(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish on one of the device's topics."""
        await self.transport.publish(topics.device(FLEET, self.name, kind), payload, qos=1, retain=retain)

    def _assigned(self, message: object) -> None:
        signed = Metadata[Targets].from_bytes(message.payload).signed
        if signed.version in self.versions:
            return
        self.versions.append(signed.version)
        self.wanted = {file.custom["name"]: file.hashes["sha256"] for file in signed.targets.values()}
        for file in signed.targets.values():
            self._deploy(file.custom["name"], file.custom["version"], file.hashes["sha256"])
        self._soon(self.report())

    def _deploy(self, model: str, version: str, digest: str) -> None:
        running = self.models.get(model, Running())
        if self.behaviour == "silent" or running.digest == digest:
            return
        refused = self.behaviour == "refuse"
        if not refused:
            self.models[model] = Running(digest=digest, version=version, since=time.time())
        self.outcomes[model] = Outcome(
            deployment=digest,
            version=version,
            result="refused" if refused else "succeeded",
            error="SelfTestError" if refused else "",
            at=time.time(),
        )

    def _commanded(self, message: object) -> None:
        self.commands.append(message.payload)
        command = open_envelope(message.payload, Command, self.director)
        result = Result(device=self.name, number=command.number, ok=True, message="all golden rows agree")
        self._soon(self.say("result", seal(result, self.signer)))

    def _soon(self, coroutine: object) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class ControlSide:
    """Registry, database, broker and a running controller; with `url` it uses a real broker."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder
        self.url = url
        self.tls: dict[str, Path] = {}
        self.broker = MemoryBroker()
        self.store = open_store(f"file://{folder / 'registry'}")
        self.repository = Repository(self.store, folder / "keys")
        self.root = self.repository.create()
        self.state = open_fleet_state(f"sqlite:///{folder / 'fleet.db'}", FLEET)
        self.director = load_signer(key_path(folder / "keys", "director"))
        self.devices: dict[str, FakeDevice] = {}
        self.options = ControllerOptions(tick_seconds=0.01)
        self.load_director: Callable[[], CryptoSigner] | None = None
        self.clock = SystemClock()
        self.controller: Controller | None = None
        self.transport: Transport | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ControlSide:
        await self.start_controller()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_controller()
        for device in self.devices.values():
            await device.transport.stop()
        self.state.close()

    async def start_controller(self) -> None:
        """Start a new controller on the same database."""
        self._stop = asyncio.Event()
        self.transport = self._transport()
        self.controller = Controller(
            fleet=FLEET,
            transport=self.transport,
            state=self.state,
            store=self.store,
            reader=self.reader(),
            director=self.director,
            clock=self.clock,
            options=self.options,
            load_director=self.load_director,
        )
        running = self._running = asyncio.get_running_loop().create_task(self.controller.run(self._stop))
        if not self.url and self.broker.up:  # devices' messages before that would be lost, or retained
            connected = asyncio.ensure_future(self.transport.wait_connected(PATIENCE_SECONDS))
            await asyncio.wait((connected, running), return_when=asyncio.FIRST_COMPLETED)
            connected.cancel()

    def _transport(self) -> Transport:
        if self.url:
            return MqttTransport(self.url, client_id="controller", username="controller", **self.tls)
        return MemoryTransport(self.broker, "controller")

    async def stop_controller(self) -> None:
        """Stop the controller cleanly."""
        self._stop.set()
        if self._running:
            await self._running

    async def kill_controller(self) -> None:
        """Cancel the controller at any point."""
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        self._running = None

    def reader(self) -> RegistryReader:
        """A refreshed reader of the registry."""
        reader = RegistryReader(self.store, self.root, self.folder / "cache")
        reader.refresh()
        return reader

    def publish(self, name: str, version: str, target: str = TARGET, model: bytes = b"model") -> str:
        """Publish a bundle and return its digest."""
        folder = self.folder / "bundles" / f"{name}-{version}-{target}"
        manifest = write_bundle(folder, name, version, target, model + version.encode())
        publish(self.store, self.repository, folder)
        return manifest.digest

    async def device(self, name: str, target: str = TARGET, behaviour: str = "succeed") -> FakeDevice:
        """Enroll and start a device."""
        device = FakeDevice(self.broker, self.folder / "devices", name)
        device.behaviour = behaviour
        device.director = self.director.public_key
        pem = (self.folder / "devices" / f"{name}.pub").read_text()
        self.state.devices.enroll(Device(name=name, target=target, public_key=pem, enrolled=time.time()))
        self.devices[name] = device
        await device.start()
        return device

    def start(self, model: str, version: str, *targets: str, **plan: object) -> Rollout:
        """Start a rollout as `edgekit rollout start` does."""
        reader = self.reader()
        entries = {target: reader.resolve(model, target, version).entry for target in targets or (TARGET,)}
        return self.state.rollouts.start(
            model, version, entries, plan=RolloutPlan(**plan), cohort=Cohort(), now=self.clock.wall()
        )

    def rollout(self) -> Rollout:
        """The newest rollout."""
        return self.state.rollouts.all()[-1]

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until `holds` returns true; fail after PATIENCE_SECONDS."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < end, f"condition not met; newest rollout: {self.state.rollouts.all()[-1:]}"
            await asyncio.sleep(0.01)
