"""What this device is: measured here, judged by edgekit.bundle.compat, reported to the controller."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

from edgekit import __version__
from edgekit.bundle.compat import Facts
from edgekit.versions import version_of

_ARCHES = {"arm64": "aarch64", "amd64": "x86_64"}
_DISTRIBUTIONS = {
    "litert": ("ai-edge-litert",),
    "tflite-runtime": ("tflite-runtime",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}

_OTHERS = ("ai-edge-litert", "tflite-runtime")
_CHILD_SECONDS = 60.0


def measure_facts(target: str, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> Facts:
    """Measure this device; takes up to a second where ONNX Runtime must be imported, here or in a child process.

    Args:
        target: Name of the target profile that the device was enrolled as.
        cpuinfo: Where Linux tells the features of the CPU.
    """
    machine = platform.machine().lower()
    return Facts(
        target=target,
        arch=_ARCHES.get(machine, machine),
        memory_mib=_memory_mib(),
        cpu_features=_cpu_features(cpuinfo),
        runtimes=_runtimes(),
        providers=_providers(),
        python=platform.python_version(),
        edgekit=__version__,
    )


def boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """What Linux calls the present boot of this machine; empty where it tells none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _cpu_features(cpuinfo: Path) -> tuple[str, ...]:
    """Features of the first CPU; empty where the system tells none (not Linux)."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("features", "flags"):
            return tuple(sorted(set(value.split())))
    return ()


def _runtimes() -> dict[str, str]:
    found = {}
    for name, distributions in _DISTRIBUTIONS.items():
        versions = [version for distribution in distributions if (version := version_of(distribution))]
        if versions:
            found[name] = versions[0]
    return found


def _providers() -> tuple[str, ...]:
    """What ONNX Runtime has; where another runtime may be the one in use, a child asks, for it is never unloaded."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    if "onnxruntime" not in sys.modules and any(version_of(name) for name in _OTHERS):
        found = _ask_child()
        if found is not None:
            return found
    import onnxruntime  # a device without it is common, and it is slow to import

    return tuple(onnxruntime.get_available_providers())


def _ask_child() -> tuple[str, ...] | None:
    """None where the child could not say."""
    command = [sys.executable, "-c", "import onnxruntime; print(*onnxruntime.get_available_providers())"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(said.split())
