"""The agent as a process on a file system with power cuts, with a real broker and a real controller.

The default run has one point, `pytest -m soak tests/device_agents/update/test_crash_process.py` dozens. Every call is
tested in test_crash_points.py, in one process.
"""

import asyncio
import shutil

import pytest

from device_agents.deployment import UpdateState
from tests.device_agents.update.test_kill import installed, publish_version, roll_out, until
from tests.simulators.crash import Loss

LOSSES = tuple(Loss)
ABOUT = 700  # calls that an update of this size makes, with its start


async def cut(side, agent, old, new, call, loss):
    """Start the agent with its power to go at a call, roll out, and look at what comes up again."""
    after = agent.folder / "after"
    agent.program = ["tests.simulators.crashing_agent", str(after), str(call), loss.value]
    publish_version(side, new)
    await agent.end()
    await agent.start()
    rolling = asyncio.ensure_future(roll_out(side, new))
    ended = asyncio.ensure_future(agent.ended())
    await asyncio.wait([rolling, ended], return_when=asyncio.FIRST_COMPLETED)
    agent.program = ["device_agents"]
    died = ended.done()
    if died:
        shutil.rmtree(agent.folder / "state")
        after.rename(agent.folder / "state")
        await agent.start()
        assert await agent.ask("small") in (old, new)
    await rolling
    ended.cancel()
    assert await agent.ask("small") == new
    state = agent.state("small")
    await until(lambda: agent.state("small").name is UpdateState.IDLE, side)
    assert state.active.version == new
    slots = {name for name in agent.files() if name.startswith(("models/", "incoming/"))}
    inside = ("manifest.json", "model.onnx", "golden.npz", "labels.bin")
    assert slots <= {f"models/small/{slot}/{name}" for slot in "ab" for name in inside} | {"models/small/active"}
    return died


async def run_cuts(tmp_path, calls):
    died, old = 0, "1.0.0"
    async with installed(tmp_path) as (side, agent, _):
        for number, call in enumerate(calls):
            new = f"1.{number + 1}.0"
            died += await cut(side, agent, old, new, call, LOSSES[number % len(LOSSES)])
            old = new
    return died


# The agent's process starts three times, and two probations run for seconds: about 12 s.
async def test_a_process_that_loses_its_power_in_an_update_finishes_it(tmp_path):
    """Old or new answers after the start, the controller hears of the new one, and no file is left over."""
    assert await run_cuts(tmp_path, [150]) == 1


@pytest.mark.soak
async def test_dozens_of_power_cuts(tmp_path):
    """All over an update, each kind of loss in turn; a call that never comes is no cut."""
    assert await run_cuts(tmp_path, range(20, ABOUT, 17)) >= 10
