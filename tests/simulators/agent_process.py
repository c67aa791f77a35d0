"""Runs `edgekit-agent` as a process that tests can kill, like a power cut or the kernel does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from pathlib import Path

from device_agents.deployment import UpdateRecord
from device_agents.storage.journal import Journal
from edgekit.storage.disk import FolderDisk

START_SECONDS = 240.0
_ENV = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}


class AgentProcess:
    """One agent in a folder with device.key, root.json and agent.toml.

    Attributes:
        kills: Number of calls of `kill`.
        python: The interpreter of the agent.
        program: The module to run, and words before "run".
        url: URL of its HTTP endpoint; empty before the start.
        environ: Variables of the next start, besides those of this process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kills = 0
        self.python = sys.executable
        self.program = ["device_agents"]
        self.url = ""
        self.environ: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the agent and wait for its ready line. Fails with the end of its log if the line does not come."""
        with (self.folder / "agent.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(self.python, "-m", *self.program, "run", "--config", str(self.folder / "agent.toml")),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_ENV | self.environ,
            )
        line = await asyncio.wait_for(self._process.stdout.readline(), START_SECONDS)
        assert b" ready at " in line, self.log()[-2000:]
        self.url = line.split()[-1].decode()

    async def ended(self) -> int:
        """Wait until the agent ends by itself. Returns its exit code."""
        return await self._process.wait()

    async def kill(self) -> None:
        """Kill the agent with SIGKILL."""
        self.kills += 1
        await self.end(signal.SIGKILL)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await self._process.wait()

    async def ask(self, model: str) -> str:
        """Send a request. Returns the version that answered."""
        return await asyncio.to_thread(self._ask, model)

    def _ask(self, model: str) -> str:
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [9, 0, 0]}]}
        request = urllib.request.Request(f"{self.url}/v2/models/{model}/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["parameters"]["edgekit_version"]

    def state(self, model: str) -> UpdateRecord:
        """The record of a model in the journal."""
        return Journal(FolderDisk(self.folder / "state")).models().get(model, UpdateRecord())

    def files(self) -> set[str]:
        """Every file in its state folder."""
        root = self.folder / "state"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    def log(self) -> str:
        """The log so far."""
        return (self.folder / "agent.log").read_text()
