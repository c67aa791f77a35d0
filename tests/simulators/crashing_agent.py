"""Runs `edgekit-agent` on a file system with a power cut.

``python -m tests.simulators.crashing_agent AFTER CALL LOSS run --config ...`` ends with SIGKILL before its CALL-th call
that changes a file. AFTER is then the state folder of the next start.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from device_agents import __main__ as program
from device_agents.assembly import serving
from edgekit.storage.disk import FolderDisk
from tests.simulators.crash import CrashCalls, Loss


def main() -> None:
    """Run the agent with this file system."""
    after, call, loss = Path(sys.argv[1]), int(sys.argv[2]), Loss(sys.argv[3])
    del sys.argv[1:4]
    disks: dict[Path, FolderDisk] = {}

    def make(root: Path) -> FolderDisk:
        if root not in disks:
            root.mkdir(parents=True, exist_ok=True)
            calls = CrashCalls(root.resolve(), after, loss, seed=call, die=die)
            calls.cut_at = call
            disks[root] = FolderDisk(root, calls=calls)
        return disks[root]

    serving.FolderDisk = make  # type: ignore[assignment, misc]
    program.main()


def die() -> None:
    """End the process, like a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
