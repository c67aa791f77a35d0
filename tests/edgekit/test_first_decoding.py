"""The first decoding of a type, in several threads at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

# msgspec 0.22 crashes the process when two threads prepare the same type at once; a bare script did so 6 times in 15.
SCRIPT = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
{imports}
start = threading.Barrier(8)
def work():
    start.wait()
    try:
        {call}
    except Exception:
        pass  # the bytes are not valid; only a crash of the process counts
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
CASES = {
    "manifest": ("from edgekit.bundle.manifest import parse_manifest", "parse_manifest(b'{}')"),
    "report": ("from edgekit.mqtt.messages import Reported, decode", "decode(b'\\x80', Reported)"),
    "offers": (
        "from edgekit.deltas.description import parse_offers",
        "parse_offers({'deltas': [{'description': 'a'}]})",
    ),
}
RUNS = 12


# Each case starts twelve processes: about 10 s in all.
@pytest.mark.parametrize("case", CASES)
def test_eight_threads_decode_a_new_type_without_a_crash(case: str) -> None:
    """No process ends by a signal."""
    imports, call = CASES[case]
    script = SCRIPT.format(imports=imports, call=call)
    ended = [subprocess.run([sys.executable, "-c", script], timeout=60).returncode for _ in range(RUNS)]
    assert ended == [0] * RUNS
