"""`edgekit-agent` as its own process, for tests that end it as a power cut or the kernel would."""

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
        kills: How often `kill` ended it.
        python: The interpreter that runs it.
        url: Of its HTTP endpoint, since it started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kills = 0
        self.python = sys.executable
        self.program = ["device_agents"]  # module, and words before "run"
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start, and wait for its line; fails with its log where it does not come."""
        with (self.folder / "agent.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(self.python, "-m", *self.program, "run", "--config", str(self.folder / "agent.toml")),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_ENV,
            )
        line = await asyncio.wait_for(self._process.stdout.readline(), START_SECONDS)
        assert b" ready at " in line, self.log()[-2000:]
        self.url = line.split()[-1].decode()

    async def ended(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL: nothing of it runs any more."""
        self.kills += 1
        await self.end(signal.SIGKILL)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await self._process.wait()

    async def ask(self, model: str) -> str:
        """The version that answers."""
        return await asyncio.to_thread(self._ask, model)

    def _ask(self, model: str) -> str:
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [9, 0, 0]}]}
        request = urllib.request.Request(f"{self.url}/v2/models/{model}/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["parameters"]["edgekit_version"]

    def state(self, model: str) -> UpdateRecord:
        """What its journal says."""
        return Journal(FolderDisk(self.folder / "state")).models().get(model, UpdateRecord())

    def files(self) -> set[str]:
        """Every file in its state folder."""
        root = self.folder / "state"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    def log(self) -> str:
        """All that it has logged."""
        return (self.folder / "agent.log").read_text()
