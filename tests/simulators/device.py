"""A whole device in memory, and a control side (`Desk`) with signed registry, blocks, assignments and commands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from device_agents.agent import Agent
from device_agents.agent_parts import AgentParts
from device_agents.condition.rules import Condition
from device_agents.control.link import presence_will
from device_agents.deployment import Limits, UpdateState
from device_agents.options import AgentOptions, AgentTimings
from device_agents.shadow import ShadowTask
from device_agents.storage.journal import Journal
from edgekit.bundle.manifest import BLOCK_BYTES, Manifest
from edgekit.clock import SystemClock
from edgekit.errors import RuntimeLoadError, SelfTestError
from edgekit.mqtt import messages, topics
from edgekit.registry import blob_name, publish
from edgekit.serving.models.memory_growth import Grown
from edgekit.trust.assignment import Assignment, Entry, sign_assignment
from edgekit.trust.client import TrustClient
from edgekit.trust.envelopes import open_envelope, seal
from edgekit.trust.keys import generate_key, key_path, load_signer
from edgekit.trust.repository import Repository
from tests.simulators.bundles import write_bundle
from tests.simulators.disk import FaultyDisk
from tests.simulators.store import MemoryStore
from tests.simulators.transport import MemoryBroker, MemoryTransport

FLEET, DEVICE, TARGET = "test", "d1", "raspberry-pi-4"
QUICK = Limits(probation_seconds=0.01, retry_seconds=0.02, max_retry_seconds=0.1)


class Desk:
    """The control side, with one model ``digits`` and any number of versions.

    Attributes:
        broker: The broker of both sides.
        tamper: Called as `tamper(digest, index, data)` for each block. Its result is sent; None sends nothing.
        silent: True to answer no request.
        blocks_sent: Number of blocks sent so far.
    """

    def __init__(self, folder: Path, broker: MemoryBroker) -> None:
        self._folder = folder
        self.broker = broker
        self.store = MemoryStore()
        self.repository = Repository(self.store, folder / "keys")
        self.root = self.repository.create()
        self.repository.add_model("digits")
        self.director = load_signer(key_path(folder / "keys", "director"))
        self.transport = MemoryTransport(broker, "controller")
        self.tamper: Callable[[str, int, bytes], bytes | None] = lambda digest, index, data: data
        self.silent = False
        self.blocks_sent = 0
        self._version = 0
        self._commands = 0
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> None:
        """Subscribe to requests."""
        for kind in topics.REQUEST_KINDS:
            await self.transport.subscribe(topics.request(FLEET, kind, "+"), self._soon)
        await self.transport.start()
        await self.transport.wait_connected(5)

    def publish(self, version: str, model: bytes | None = None) -> Entry:
        """Publish a version to the registry; by default with five random blocks. Returns its assignment entry."""
        model = random.Random(version).randbytes(300_000) if model is None else model
        bundle = write_bundle(self._folder / version, "digits", version, TARGET, model)
        return publish(self.store, self.repository, bundle).entry

    def assign(self, *entries: Entry, device: str = DEVICE, seconds: float = 3600.0, signer: object = None) -> bytes:
        """Sign an assignment and retain it on the desired topic."""
        self._version += 1
        expires = SystemClock().wall() + seconds
        assignment = Assignment(device, FLEET, self._version, expires, {entry.name: entry for entry in entries})
        payload = sign_assignment(assignment, signer or self.director)
        self.broker.publish(topics.device(FLEET, DEVICE, "desired"), payload, qos=1, retain=True)
        return payload

    def command(
        self, kind: str, *, number: int | None = None, seconds: float = 60.0, args: dict[str, object] | None = None
    ) -> None:
        """Send a signed command."""
        self._commands = number if number is not None else self._commands + 1
        expires = SystemClock().wall() + seconds
        command = messages.Command(DEVICE, FLEET, self._commands, expires, kind, args or {})
        self.broker.publish(topics.device(FLEET, DEVICE, "command"), seal(command, self.director), qos=1)

    def said(self, kind: str) -> list[bytes]:
        """Payloads that the device published on one of its topics, in order."""
        topic = topics.device(FLEET, DEVICE, kind)
        return [message.payload for message in self.broker.published if message.topic == topic]

    def _soon(self, message: object) -> None:
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: object) -> None:
        if self.silent or not self.transport.connected:
            return
        parsed = topics.parse_request(message.topic)
        if parsed.kind == "metadata":
            request = messages.decode(message.payload, messages.MetadataRequest)
            name = f"metadata/{request.name}"
            if not self.store.exists(name):
                await self._send(parsed.device, messages.Answer(request.id, error="not-found"))
                return
            data = self.store.get(name)
            parts = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
            for index, part in enumerate(parts):
                await self._send(parsed.device, messages.Answer(request.id, index, len(parts), part))
            return
        request = messages.decode(message.payload, messages.BlocksRequest)
        wanted = [index for span in request.ranges for index in range(span.first, span.last + 1)]
        for index in wanted[: request.credit]:
            data = self.store.get_range(blob_name(request.digest), index * BLOCK_BYTES, BLOCK_BYTES)
            block = self.tamper(request.digest, index, data)
            if block is None:
                continue
            self.blocks_sent += 1
            answer = messages.Answer(request.id, index, 0, block)
            await self._send(parsed.device, answer)

    async def _send(self, device: str, answer: messages.Answer) -> None:
        if self.transport.connected:
            await self.transport.publish(topics.answer(FLEET, device), messages.encode(answer))


class FakeInference:
    """An inference service without models that records which bundle would answer.

    Attributes:
        live: Active version by model.
        history: Every activated version, in order; an empty string for a deactivation.
        broken: Versions that do not load.
        dying: Versions that fail their self-test when live.
        flaky: Versions that pass their self-test, but fail every second live request.
        failing: How many of their requests fail from one look at the counters to the next.
        growing: What the next call of `grown` returns.
        sketches: What the next call of `take_sketches` returns.
    """

    def __init__(self) -> None:
        self.live: dict[str, str] = {}
        self.history: list[str] = []
        self.broken: set[str] = set()
        self.dying: set[str] = set()
        self.flaky: set[str] = set()
        self.failing, self.errors = 10, 0
        self.growing: list[Grown] = []
        self.sketches: dict = {}
        self._shadowed: dict[str, messages.Shadow] = {}

    async def activate(self, model: str, manifest: Manifest, folder: Path, *, compare: bool = True) -> None:
        """See the protocol."""
        await asyncio.sleep(0)
        if manifest.version in self.broken:
            raise RuntimeLoadError(f"{model} {manifest.version} does not load")
        self.live[model] = manifest.version
        self.history.append(manifest.version)

    async def deactivate(self, model: str) -> None:
        """See the protocol."""
        self.live.pop(model, None)
        self.history.append("")

    async def self_test(self, model: str) -> object:
        """See the protocol."""
        if model not in self.live:
            raise RuntimeLoadError(f"{model} is not loaded")
        if self.live[model] in self.dying:
            raise SelfTestError(f"{model} {self.live[model]}: scores differ")
        return None

    def behaviour(self, model: str) -> dict[str, messages.Behaviour]:
        """See the protocol."""
        return {}

    async def shadow(self, model: str, manifest: Manifest, folder: Path, task: ShadowTask) -> None:
        """See the protocol. There are no requests, so the comparison ends when its time is over."""
        self._shadowed[model] = task.counts.message(manifest.digest)
        if not task.counts.ended:
            await asyncio.sleep(task.seconds)
            counts = msgspec.structs.replace(task.counts, ended=messages.SHADOW_TIME)
            self._shadowed[model] = counts.message(manifest.digest)
            await task.note(counts)

    def shadowed(self, model: str) -> messages.Shadow | None:
        """See the protocol."""
        return self._shadowed.get(model)

    def provider(self, model: str) -> str:
        """See the protocol."""
        return "fake" if model in self.live else ""

    def counters(self) -> dict[str, dict[str, float]]:
        """See the protocol."""
        self.errors += self.failing * (self.live.get("digits") in self.flaky)
        return {"digits": {"local": 3.0, "runs": 2.0 * self.errors, "runtime_errors": float(self.errors)}}

    def take_sketches(self) -> dict:
        """See the protocol. Returns `sketches` once."""
        taken, self.sketches = self.sketches, {}
        return taken

    def assign(self, models: Collection[str]) -> None:
        """Nothing here depends on the names."""

    async def grown(self) -> list[Grown]:
        """See the protocol. Returns `growing` once."""
        grown, self.growing = self.growing, []
        return grown


class Device:
    """One device: `start` it, `kill` it like a power cut, and `start` it again on the durable data of its disk.

    Attributes:
        refused: Versions whose self-test fails before activation.
        mismatches: What the compatibility check finds.
        limits, timings, options: Fields of AgentOptions; read by `start`.
        condition: The facts that change.
    """

    def __init__(self, folder: Path, broker: MemoryBroker, root: bytes, disk: FaultyDisk | None = None) -> None:
        self.disk = disk or FaultyDisk()
        self.broker, self.root = broker, root
        self.inference = FakeInference()
        self.refused: set[str] = set()
        self.mismatches: list[str] = []
        self.limits = QUICK
        self.condition = Condition()
        self.timings = AgentTimings(condition_survey_seconds=0.05)
        self.options: dict[str, object] = {}
        self.cache = folder / "tuf"
        key = folder / "device.key"
        self.signer = load_signer(key) if key.exists() else generate_key(key)
        self.agent: Agent
        self.task: asyncio.Task | None = None

    async def start(self) -> None:
        """Start the agent: read the journal, then connect."""
        journal = Journal(self.disk)
        session = journal.begin_session()
        self.transport = MemoryTransport(self.broker, DEVICE, will=presence_will(FLEET, DEVICE, session))
        options = AgentOptions(
            device=DEVICE,
            fleet=FLEET,
            limits=self.limits,
            timings=self.timings,
            **{"heartbeat_seconds": 60, "telemetry_seconds": 0.05, **self.options},
        )
        parts = AgentParts(
            disk=self.disk,
            journal=journal,
            transport=self.transport,
            trust=lambda fetch: TrustClient(self.cache, self.root, fetch),
            inference=self.inference,
            self_test=self.self_test,
            mismatches=lambda manifest: list(self.mismatches),
            facts={"arch": "aarch64"},
            signer=self.signer,
            clock=SystemClock(),
            condition=lambda: self.condition,
        )
        self.agent = Agent(options, parts)
        await self.agent.start()
        self.task = asyncio.create_task(self.agent.run())

    async def self_test(self, manifest: Manifest, folder: Path) -> None:
        """The self-test of a staged bundle; fails for versions in `refused`."""
        if manifest.version in self.refused:
            raise SelfTestError(f"output scores of {manifest.version} differs by 0.5, allowed 0.01")

    async def stop(self) -> None:
        """Stop the agent cleanly."""
        self.agent.stop()
        await self.task

    async def kill(self) -> None:
        """End the agent at once, and its connection with it."""
        self.broker.cut(DEVICE, hold=True)
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.transport.stop()
        self.broker.restore(DEVICE)
        if not self.task.cancelled():
            self.task.exception()

    @property
    def state(self) -> object:
        """Update record of the model."""
        return self.agent.states.get("digits")

    def reported(self) -> messages.Reported:
        """The retained report, with verified signature."""
        payload = self.broker.retained[topics.device(FLEET, DEVICE, "reported")]
        return open_envelope(payload, messages.Reported, self.signer.public_key)

    async def until(self, holds: Callable[[], object], seconds: float = 50.0) -> None:
        """Wait until `holds()` is true. Fails with the device's update records after `seconds`."""
        try:
            await asyncio.wait_for(self._poll(holds), seconds)
        except asyncio.TimeoutError:
            raise AssertionError(f"the condition did not become true within {seconds} s: {self.agent.states}") from None

    async def _poll(self, holds: Callable[[], object]) -> None:
        while not holds():
            if self.task.done():
                self.task.result()
                raise AssertionError("the agent ended")
            await asyncio.sleep(0.005)

    async def settled(self, version: str | None = None) -> None:
        """Wait until the model has no running deployment, and `version` is active if given."""
        await self.until(lambda: self.rests(version))

    def rests(self, version: str | None = None) -> bool:
        """True if the model has no running deployment, and `version` is active if given."""
        state = self.state
        if state is None or state.name is not UpdateState.IDLE or state.deployment is not None:
            return False
        return version is None or (state.active is not None and state.active.version == version)
