"""Remote commands to a real agent process, over a real broker, from a real controller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgekit.errors import DataError
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.state import StoredCommand
from edgekit.trust.keys import generate_key
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.small_models import onnx_bundle

LONG_SECONDS = 30
PATIENCE_SECONDS = 120.0


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[ControlSide, AgentProcess]]:
    """A control side with a published bundle, and one agent that runs nothing."""
    async with await start_broker("127.0.0.1", 0, folder / "broker") as broker, ControlSide(folder, broker.url) as side:
        device = folder / "pi-1"
        device.mkdir()
        generate_key(device / "device.key")
        (device / "root.json").write_bytes(side.root)
        (device / "agent.toml").write_text(
            f'device = "pi-1"\nfleet = "{FLEET}"\ntarget = "x86-64"\nbroker = "{side.url}"\nhttp = "127.0.0.1:0"\n'
        )
        pem = (device / "device.pub").read_text()
        side.state.devices.enroll(Device("pi-1", "x86-64", pem, enrolled=side.clock.wall()))
        onnx_bundle(folder / "made", version="1.0.0", target="x86-64")
        publish(side.store, side.repository, folder / "made")
        agent = AgentProcess(device)
        await agent.start()
        try:
            yield side, agent
        finally:
            await agent.kill()


async def ask(side: ControlSide, kind: str, **args: object) -> StoredCommand:
    """Send a command and wait for its answer."""
    now = side.clock.wall()
    sent = side.state.commands.add("pi-1", kind, args=args, now=now, expires=now + PATIENCE_SECONDS)
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        found = side.state.commands.get("pi-1", sent.number)
        if found.state == "done":
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{kind} got no answer within {PATIENCE_SECONDS} s")


async def ready_again(agent: AgentProcess) -> None:
    """Wait for the next ready line of the same process."""
    line = await asyncio.wait_for(agent._process.stdout.readline(), PATIENCE_SECONDS)
    assert b" ready at " in line, agent.log()[-2000:]


async def check(agent: AgentProcess) -> dict[str, str]:
    command = [sys.executable, "-m", "device_agents", "check", "--json", "--config", str(agent.folder / "agent.toml")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=120, check=False)
    return {row["check"]: row["found"] for row in json.loads(done.stdout)}


async def test_a_fleet_can_look_measure_set_and_restart(tmp_path: Path) -> None:
    """Logs, a measurement, settings that take effect and are taken back, and what the agent itself refuses."""
    async with running(tmp_path) as (side, agent):
        process = agent._process.pid
        logs = await ask(side, "logs", lines=3)
        assert logs.ok
        assert any("connected to the broker" in line for line in logs.detail["lines"])

        manifest = side.reader().resolve("small", "x86-64", "1.0.0")
        bundle = {"model": "small", "version": "1.0.0", "target": "x86-64", "digest": manifest.sha256}
        measured = await ask(side, "profile", **bundle, seconds=0.2)
        assert measured.ok, measured.message
        detail = measured.detail
        assert 0 < detail["p50_ms"] <= detail["p95_ms"]
        assert 0 <= detail["model_bytes"] < 8e6 < detail["peak_bytes"]  # the runtime's library is not the model
        assert (detail["runs"] >= 5, detail["provider"]) == (True, "CPUExecutionProvider")
        short = await ask(side, "profile", **bundle, seconds=0.2, memory_mib=16)
        assert not short.ok
        assert "16 MiB" in short.message
        other = await ask(side, "profile", **{**bundle, "digest": "0" * 64})
        assert (other.ok, "VerificationError" in other.message) == (False, True)
        assert not (agent.folder / "state" / "profiling").exists(), "nothing stays"

        with pytest.raises(DataError, match="threads is 0"):  # it is not even sent
            await ask(side, "set", values={"threads": "0"})
        changed = await ask(side, "set", values={"threads": "2", "heartbeat_seconds": "1.5"})
        assert changed.ok, changed.message
        await ready_again(agent)
        assert agent._process.pid == process
        assert (await ask(side, "self-test")).ok
        assert (await check(agent))["remote settings"] == "heartbeat_seconds = 1.5, threads = 2"

        assert (await ask(side, "set", values={"threads": "", "heartbeat_seconds": ""})).ok
        await ready_again(agent)
        assert (await ask(side, "restart")).ok
        await ready_again(agent)
        assert (await ask(side, "logs")).ok
        assert "remote settings" not in await check(agent)


@pytest.mark.parametrize("kind", ["reboot", "sh"])
def test_the_control_side_sends_only_what_exists(tmp_path: Path, kind: str) -> None:
    """There is no command that runs anything else."""
    from edgekit.errors import SettingsError
    from edgekit.state import open_fleet_state

    state = open_fleet_state(f"sqlite:///{tmp_path / 'f.db'}", "f")
    with pytest.raises(SettingsError, match="is no command"):
        state.commands.add("pi-1", kind, now=1.0, expires=2.0)
    state.close()
