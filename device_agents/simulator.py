"""Many devices in one process: the real agent and UpdateMachine over a real Transport, with simulated models."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner

from device_agents.agent import Agent
from device_agents.agent_parts import AgentParts
from device_agents.deployment import UpdateState
from device_agents.options import AgentOptions
from device_agents.protocols import TrustFactory
from device_agents.shadow import ShadowTask
from device_agents.storage.journal import Journal
from edgekit.bundle.manifest import Manifest
from edgekit.errors import RuntimeLoadError, SelfTestError
from edgekit.mqtt.messages import SHADOW_TIME, Behaviour, Shadow
from edgekit.protocols import Clock, Disk, Transport
from edgekit.serving.models.memory_growth import Grown
from edgekit.sketches.sketch import Sketch


class SimulatedInference:
    """Inference service that runs no model. A fixed share of (device, bundle) pairs fails its self-test.

    Args:
        device: Name of the device.
        fail_share: Share of (device, bundle) pairs whose self-test fails, 0 to 1.
    """

    def __init__(self, device: str, fail_share: float = 0.0) -> None:
        self._device, self._fail_share = device, fail_share
        self._live: dict[str, Manifest] = {}
        self._shadowed: dict[str, Shadow] = {}

    async def activate(self, model: str, manifest: Manifest, folder: Path, *, compare: bool = True) -> None:
        """Simulate the loading of a bundle."""
        self._live[model] = manifest

    async def deactivate(self, model: str) -> None:
        """Forget a model."""
        self._live.pop(model, None)

    async def self_test(self, model: str) -> None:
        """Test the live bundle. Raises RuntimeLoadError without one, SelfTestError when it fails."""
        if model not in self._live:
            raise RuntimeLoadError(f"{model} is not loaded")
        await self.test(self._live[model], Path())

    async def test(self, manifest: Manifest, folder: Path) -> None:
        """Test a staged bundle. Raises SelfTestError when it fails on this device."""
        draw = hashlib.sha256(f"{self._device} {manifest.digest}".encode()).digest()
        if int.from_bytes(draw[:4], "big") < self._fail_share * 2**32:
            raise SelfTestError(f"{manifest.name} {manifest.version} fails on {self._device}, as the simulation chose")

    def provider(self, model: str) -> str:
        """``simulated`` for a live model, else empty."""
        return "simulated" if model in self._live else ""

    def counters(self) -> Mapping[str, Mapping[str, float]]:
        """No counters: there are no requests."""
        return {}

    async def shadow(self, model: str, manifest: Manifest, folder: Path, task: ShadowTask) -> None:
        """Wait until the time is over: there are no requests."""
        self._shadowed[model] = task.counts.message(manifest.digest)
        if not task.counts.ended:
            await asyncio.sleep(task.seconds)
            counts = msgspec.structs.replace(task.counts, ended=SHADOW_TIME)
            self._shadowed[model] = counts.message(manifest.digest)
            await task.note(counts)

    def shadowed(self, model: str) -> Shadow | None:
        """A comparison without any input."""
        return self._shadowed.get(model)

    def behaviour(self, model: str) -> Mapping[str, Behaviour]:
        """Nothing: there are no requests."""
        return {}

    def take_sketches(self) -> dict[str, Sketch]:
        """Nothing: there are no requests."""
        return {}

    def assign(self, models: Collection[str]) -> None:
        """Nothing here depends on the names."""

    async def grown(self) -> list[Grown]:
        """Nothing: no model is in memory."""
        return []


class FleetProgress(msgspec.Struct, frozen=True):
    """Progress of the simulated fleet.

    Attributes:
        devices, connected: Count of devices, and of those connected to the broker.
        updating: Count of devices in a state other than IDLE.
        versions: Devices by ``model version``.
        failures: Devices by ``model version result error`` of the last deployment that did not succeed.
    """

    devices: int
    connected: int
    updating: int
    versions: dict[str, int]
    failures: dict[str, int]


class SimulatedFleet:
    """Simulated devices that start and stop together."""

    def __init__(self) -> None:
        self._agents: list[Agent] = []
        self._transports: list[Transport] = []

    def add(
        self,
        options: AgentOptions,
        *,
        target: str,
        disk: Disk,
        journal: Journal,
        transport: Transport,
        trust: TrustFactory,
        signer: CryptoSigner,
        clock: Clock,
        fail_share: float = 0.0,
    ) -> None:
        """Add one device; the arguments are those of AgentParts, and the share of failing self-tests (0 to 1)."""

        def target_mismatches(manifest: Manifest) -> list[str]:
            wrong = manifest.target != target
            return [f"it is for target {manifest.target!r}, this device is {target!r}"] if wrong else []

        inference = SimulatedInference(options.device, fail_share)
        self._transports.append(transport)
        parts = AgentParts(
            disk=disk,
            journal=journal,
            transport=transport,
            trust=trust,
            inference=inference,
            self_test=inference.test,
            mismatches=target_mismatches,
            facts={"target": target, "simulated": True},
            signer=signer,
            clock=clock,
        )
        self._agents.append(Agent(options, parts))

    def progress(self) -> FleetProgress:
        """The present progress."""
        versions: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        updating = 0
        for agent in self._agents:
            states = agent.states
            updating += any(
                state.name is not UpdateState.IDLE or state.deployment is not None for state in states.values()
            )
            for model, state in states.items():
                versions[f"{model} {state.active.version}" if state.active else f"{model} none"] += 1
                if state.outcome is not None and state.outcome.result != "succeeded":
                    failures[f"{model} {state.outcome.version} {state.outcome.result} {state.outcome.error}"] += 1
        connected = sum(transport.connected for transport in self._transports)
        return FleetProgress(len(self._agents), connected, updating, dict(versions), dict(failures))

    async def run(
        self, *, done: Callable[[FleetProgress], bool], show: Callable[[FleetProgress], None], seconds: float
    ) -> FleetProgress:
        """Run every device until `done`, which is called every `seconds`; call `show` after each change.

        Returns:
            The last progress.
        """
        shown: FleetProgress | None = None
        tasks = [asyncio.create_task(self._run_one(agent)) for agent in self._agents]
        try:
            while not done(self.progress()):
                await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
                if self.progress() != shown:
                    shown = self.progress()
                    show(shown)
            return self.progress()
        finally:
            for agent in self._agents:
                agent.stop()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_one(self, agent: Agent) -> None:
        await agent.start()
        await agent.run()


def versions_reached(progress: FleetProgress, version: str) -> bool:
    """True when no update is running and every device has `version` of some model, or failed to install it."""
    at = sum(count for name, count in progress.versions.items() if name.split()[1] == version)
    failed = sum(count for name, count in progress.failures.items() if name.split()[1] == version)
    return progress.updating == 0 and at + failed >= progress.devices
