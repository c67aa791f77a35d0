"""The first decoding of a type, in several threads at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MANIFEST = Path(__file__).parents[1] / "assets/release-0.1.0/bundles/shapes-1.0.0-server/manifest.json"
# msgspec 0.22 crashes the process when two threads prepare the same type at once. That needs processes that compete for
# the cores: 15 of 40 crashed on a busy machine, none of 40 on a quiet one.
SCRIPT = """
import sys, threading
from pathlib import Path
from edgekit.bundle.manifest import parse_manifest
data = Path(sys.argv[1]).read_bytes()
start = threading.Barrier(2)
def work():
    start.wait()
    parse_manifest(data)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
ROUNDS, AT_ONCE = 4, 8


def test_two_threads_decode_their_first_manifest_without_a_crash() -> None:
    """No process ends by a signal."""
    command = [sys.executable, "-c", SCRIPT, str(MANIFEST)]
    for _ in range(ROUNDS):
        running = [subprocess.Popen(command) for _ in range(AT_ONCE)]
        assert [one.wait(120) for one in running] == [0] * AT_ONCE
