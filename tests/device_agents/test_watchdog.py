"""The agent ends when its event loop stands still, and only then."""

import subprocess
import sys

STANDS_STILL = """
import asyncio, time
from device_agents.watchdog import watched

async def main():
    async with watched(0.4):
        await asyncio.sleep(1.0)  # the loop is idle, which is no fault
        print("idle", flush=True)
        time.sleep(3600)

asyncio.run(main())
"""

ENDS = """
import asyncio, time
from device_agents.watchdog import watched

async def main():
    async with watched(0.4):
        pass
    time.sleep(1.0)  # nobody watches any more
    async with watched(0.0):
        time.sleep(1.0)

asyncio.run(main())
"""


def run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)


def test_a_loop_that_stands_still_ends_the_process_and_shows_where():
    """A supervisor starts it again; the log has the line that hangs."""
    done = run(STANDS_STILL)
    assert (done.returncode, done.stdout) == (1, "idle\n")
    assert "the event loop has stood still for 0.4 s" in done.stderr
    assert "in main" in done.stderr


def test_a_loop_is_watched_while_the_agent_serves_and_not_beyond():
    """Nor with 0 seconds."""
    done = run(ENDS)
    assert done.returncode == 0, done.stderr
