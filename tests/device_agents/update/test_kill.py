"""The real agent as a process, killed with SIGKILL during updates, with a real broker and a real controller.

Two kills for each version: a third one in test or probation would refuse the bundle, as the possible cause.
"""

import asyncio
import contextlib
import random

import msgspec
import pytest

from device_agents.deployment import UpdateState
from edgekit.bundle.manifest import MANIFEST_NAME, file_entry
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.values import RolloutState
from edgekit.trust.keys import generate_key
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.small_models import onnx_bundle

BALLAST_BYTES = 4 * 1024**2
PATIENCE_SECONDS = 240.0


def publish_version(side, version):
    """A bundle that really runs, and whose download takes a while."""
    folder = side.folder / "made" / version
    manifest = onnx_bundle(folder, version=version)
    ballast = random.Random(version).randbytes(BALLAST_BYTES)
    (folder / "labels.bin").write_bytes(ballast)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, file_entry("labels.bin", "labels", ballast)))
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    publish(side.store, side.repository, folder)


def enroll(side, name="pi-1"):
    folder = side.folder / name
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(side.root)
    (folder / "agent.toml").write_text(
        f'device = "{name}"\nfleet = "{FLEET}"\ntarget = "x86-64"\nbroker = "{side.url}"\nhttp = "127.0.0.1:0"\n'
        "probation_seconds = 0.3\ndownload_bytes_per_second = 6000000\ncrash_watch_seconds = 0.1\n"
    )
    pem = (folder / "device.pub").read_text()
    side.state.devices.enroll(Device(name, "x86-64", pem, enrolled=side.clock.wall()))
    return AgentProcess(folder)


async def ask_all_the_time(agent, seen):
    """An application: whatever answers is noted; while the agent is down nobody does."""
    while True:
        with contextlib.suppress(OSError):
            seen.add(await agent.ask("small"))
        await asyncio.sleep(0.01)


async def until(holds, side):
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"it did not happen within {PATIENCE_SECONDS} s: {side.rollout()}")


async def roll_out(side, version):
    """Until the controller has heard that it is committed."""
    side.start("small", version, "x86-64")
    await until(lambda: side.rollout().state is RolloutState.FINISHED, side)


async def kill_during(side, agent, old, new, moments, seen):
    """Roll `new` out; end the agent in it, after each of `moments` (seconds), and look at what is there afterwards."""
    rolling = asyncio.ensure_future(roll_out(side, new))
    try:
        for moment in moments:
            await until(lambda: agent.state("small").name is not UpdateState.IDLE or rolling.done(), side)
            await asyncio.sleep(moment)
            await agent.kill()
            seen.add(agent.state("small").name)
            await agent.start()
            assert await agent.ask("small") in (old, new)
        await rolling
    finally:
        rolling.cancel()


@contextlib.asynccontextmanager
async def installed(folder):
    """A control side on a real broker, and an agent that has committed 1.0.0 and is asked all the time."""
    async with await start_broker("127.0.0.1", 0, folder / "broker") as broker, ControlSide(folder, broker.url) as side:
        agent, answers = enroll(side), set()
        publish_version(side, "1.0.0")
        await agent.start()
        asking = asyncio.ensure_future(ask_all_the_time(agent, answers))
        try:
            await roll_out(side, "1.0.0")
            yield side, agent, answers
        finally:
            asking.cancel()
            await agent.end()


def check_rest(side, agent, version, old):
    """Two slots and nothing else, journal and controller agree, and no attempt was counted as the bundle's fault."""
    state = agent.state("small")
    assert (state.name, state.deployment, state.active.version) == (UpdateState.IDLE, None, version)
    assert state.known_good == state.active
    slots = {name for name in agent.files() if name.startswith(("models/", "incoming/"))}
    inside = ("manifest.json", "model.onnx", "golden.npz", "labels.bin")
    assert slots == {f"models/small/{slot}/{name}" for slot in "ab" for name in inside} | {"models/small/active"}
    (view,) = side.state.devices.views(side.clock.wall(), 90.0)
    assert view.models["small"].version == version
    assert old != version


async def test_an_agent_that_is_killed_in_an_update_answers_and_then_finishes_it(tmp_path):
    """At seeded moments: old or new answers right after each start, in the end the new one, and no litter is left."""
    moments, seen = random.Random(7), set()
    async with installed(tmp_path) as (side, agent, answers):
        publish_version(side, "1.1.0")
        await kill_during(side, agent, "1.0.0", "1.1.0", [moments.uniform(0.2, 0.8) for _ in range(2)], seen)
        check_rest(side, agent, "1.1.0", "1.0.0")
        await until(lambda: "1.1.0" in answers, side)
        assert answers == {"1.0.0", "1.1.0"}
        assert seen - {UpdateState.IDLE}, "no kill met the update"


@pytest.mark.soak
async def test_killed_dozens_of_times(tmp_path, request):
    """Fifteen versions, two kills in each, in several states; `pytest -m soak` runs it."""
    if "soak" not in request.config.option.markexpr:
        pytest.skip("runs for minutes; ask for it: pytest -m soak")
    moments, seen, old = random.Random(11), set(), "1.0.0"
    async with installed(tmp_path) as (side, agent, answers):
        for version in (f"1.{number}.0" for number in range(1, 16)):
            publish_version(side, version)
            answers.clear()
            await kill_during(side, agent, old, version, [moments.uniform(0.0, 1.2) for _ in range(2)], seen)
            check_rest(side, agent, version, old)
            assert answers <= {old, version}
            old = version
        assert agent.kills == 30
        assert len(seen) >= 3, seen
