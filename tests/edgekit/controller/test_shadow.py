"""A comparison beside the active model, with a real mosquitto, a controller and three agents in processes."""

import asyncio
import contextlib

from edgekit.controller import rollouts
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.gates import parse_gate
from edgekit.rollout.plan import parse_waves
from edgekit.rollout.values import RolloutState
from edgekit.trust.keys import generate_key
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.small_models import onnx_bundle

NAMES = ("pi-1", "pi-2", "pi-3")
PATIENCE_SECONDS = 200.0
SHADOW = {"shadow": 20, "shadow_seconds": 300.0, "gates": (parse_gate("agreement:0.9"),)}


class Fleet:
    """Three agents that are asked all the time; `answers` has every version that has answered."""

    def __init__(self, side):
        self.side = side
        self.agents = {name: self._enrolled(name) for name in NAMES}
        self.answers = set()
        self._asking = []

    def _enrolled(self, name):
        folder = self.side.folder / name
        folder.mkdir()
        generate_key(folder / "device.key")
        (folder / "root.json").write_bytes(self.side.root)
        (folder / "agent.toml").write_text(
            f'device = "{name}"\nfleet = "{FLEET}"\ntarget = "x86-64"\nbroker = "{self.side.url}"\n'
            'http = "127.0.0.1:0"\nprobation_seconds = 0.3\nheartbeat_seconds = 0.5\n'
        )
        pem = (folder / "device.pub").read_text()
        self.side.state.devices.enroll(Device(name, "x86-64", pem, enrolled=self.side.clock.wall()))
        return AgentProcess(folder)

    async def start(self):
        await asyncio.gather(*(agent.start() for agent in self.agents.values()))
        self._asking = [asyncio.ensure_future(self._ask(agent)) for agent in self.agents.values()]

    async def _ask(self, agent):
        while True:
            with contextlib.suppress(OSError):
                self.answers.add(await agent.ask("small"))
            await asyncio.sleep(0.1)

    async def stop(self):
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        for agent in self.agents.values():
            await agent.end()

    def publish(self, version, gain):
        folder = self.side.folder / "made" / version
        onnx_bundle(folder, version=version, gain=gain)
        publish(self.side.store, self.side.repository, folder)

    async def until(self, holds):
        for _ in range(int(PATIENCE_SECONDS / 0.05)):
            if holds():
                return
            await asyncio.sleep(0.05)
        logs = "\n".join(agent.log()[-1500:] for agent in self.agents.values())
        raise AssertionError(f"it did not happen: {self.side.rollout()}\n{logs}")


async def test_a_candidate_that_agrees_goes_on_and_one_that_disagrees_is_activated_nowhere(tmp_path, monkeypatch):
    """An agent that is killed while it compares goes on afterwards; requests get answers from the active model only."""
    monkeypatch.setattr(rollouts, "GATED_SECONDS", 0.1)
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(await start_broker("127.0.0.1", 0, tmp_path / "broker"))
        side = await stack.enter_async_context(ControlSide(tmp_path, broker.url))
        fleet = Fleet(side)
        for version, gain in (("1.0.0", 1.0), ("1.1.0", 1.5), ("1.2.0", -1.0)):
            fleet.publish(version, gain)
        await fleet.start()
        try:
            side.start("small", "1.0.0", "x86-64", waves=parse_waves("100%"))
            await fleet.until(lambda: side.rollout().state is RolloutState.FINISHED)

            side.start("small", "1.1.0", "x86-64", waves=parse_waves("1,100%"), **SHADOW)
            await fleet.until(lambda: any(one.shadow for one in side.rollout().devices.values()))
            (first,) = [name for name, one in side.rollout().devices.items() if one.shadow]
            await fleet.agents[first].kill()
            assert fleet.answers == {"1.0.0"}
            await fleet.agents[first].start()
            await fleet.until(lambda: side.rollout().state is RolloutState.FINISHED)
            shadows = [one.shadow for one in side.rollout().devices.values()]
            assert {(one.ended, one.differed) for one in shadows} == {("complete", 0)}
            assert min(one.compared for one in shadows) >= 20
            await fleet.until(lambda: "1.1.0" in fleet.answers)

            fleet.answers.clear()
            plan = {**SHADOW, "waves": parse_waves("100%"), "on_failure": "return", "error_threshold": 1.0}
            side.start("small", "1.2.0", "x86-64", **plan)
            await fleet.until(lambda: side.rollout().state is RolloutState.ABORTED)
            assert "gate 'agreement >= 0.9': 0.0% of the answers agree" in side.rollout().reason
            await fleet.until(lambda: side.rollout().counts()["RETURNED"] == 3)
            assert fleet.answers == {"1.1.0"}
            assert {agent.state("small").active.version for agent in fleet.agents.values()} == {"1.1.0"}
        finally:
            await fleet.stop()
