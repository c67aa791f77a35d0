"""The agent's pinned dependencies exist as wheels for 64-bit ARM. The tests query a package index and install nothing.

Run: make test-arm, or pytest -m arm tests/arm/test_wheels.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.arm, pytest.mark.soak]

ROOT = Path(__file__).resolve().parents[2]
GLIBC = {"ubuntu-22.04": "2_35", "debian-12": "2_36"}  # JetPack 6 is based on Ubuntu 22.04
UNREACHABLE = ("error sending request", "dns error", "failed to fetch", "timed out", "no such host")


def resolve(python: str, glibc: str, requirements: str) -> subprocess.CompletedProcess[str]:
    """Resolve requirements for a Python and a glibc with wheels only."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-emit-index-url"]
    command += ["--python-version", python, "--python-platform", f"aarch64-manylinux_{glibc}"]
    command += ["--only-binary", ":all:", "-"]
    done = subprocess.run(command, input=requirements, capture_output=True, text=True, timeout=300, cwd=ROOT)
    if done.returncode and any(sign in done.stderr.lower() for sign in UNREACHABLE):
        pytest.skip("no package index is reachable")
    return done


def pinned() -> str:
    """constraints/agent.txt without its hashes."""
    lines = (ROOT / "constraints" / "agent.txt").read_text().splitlines()
    return "\n".join(line.removesuffix(" \\") for line in lines if line and not line.startswith((" ", "#")))


@pytest.mark.parametrize("system", GLIBC)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_dependency_of_the_agent_has_a_wheel(python: str, system: str) -> None:
    """Every dependency has a wheel for this Python and glibc, so nothing is compiled on the device."""
    done = resolve(python, GLIBC[system], pinned())
    assert done.returncode == 0, done.stderr
    names = {line.partition("==")[0] for line in done.stdout.splitlines() if "==" in line}
    assert {"ai-edge-litert", "onnxruntime", "numpy", "cryptography", "httptools", "zstandard"} <= names


def test_an_older_system_is_found_out() -> None:
    """ONNX Runtime has no wheel for glibc 2.17, and `resolve` fails; so the test above can fail."""
    done = resolve("3.11", "2_17", "onnxruntime==1.31.1")
    assert done.returncode != 0
    assert "onnxruntime" in done.stderr
