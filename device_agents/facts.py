"""Measures the facts of this device, which edgekit.bundle.compat judges and the agent reports."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from device_agents.accelerators import find_accelerators
from device_agents.machine import machine_arch
from edgekit import __version__
from edgekit.bundle.compat import Facts
from edgekit.versions import version_of

_DISTRIBUTIONS = {
    "litert": ("ai-edge-litert",),
    "tflite-runtime": ("tflite-runtime",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}

_OTHERS = ("ai-edge-litert", "tflite-runtime")
_CHILD_SECONDS = 60.0
_BOARDS = ("/proc/device-tree/model", "/sys/class/dmi/id/product_name")
_NO_TAGS: Mapping[str, str] = {}
MAX_BOARD = 80


def measure_facts(
    target: str,
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    state: Path | None = None,
    tags: Mapping[str, str] = _NO_TAGS,
) -> Facts:
    """Measure this device; takes up to a second when ONNX Runtime must be imported, here or in a child process.

    Args:
        target: Target profile of the device.
        cpuinfo: File with the CPU features (Linux).
        state: The agent's state folder, for the size of its file system; None for unknown.
        tags: Tags in the device's own settings.
    """
    return Facts(
        target=target,
        arch=machine_arch(),
        memory_mib=_memory_mib(),
        cpu_features=_cpu_features(cpuinfo),
        runtimes=_runtimes(),
        providers=_providers(),
        python=platform.python_version(),
        edgekit=__version__,
        board=_board(),
        cpus=_cpus(),
        disk_mib=_disk_mib(state),
        accelerators=find_accelerators(),
        tags=dict(tags),
    )


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def _board() -> str:
    """The name that the device tree of ARM boards, or the firmware of PCs, gives."""
    for name in _BOARDS:
        try:
            text = Path(name).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        except OSError:
            continue
        if text:
            return text[:MAX_BOARD]
    return ""


def _disk_mib(state: Path | None) -> int:
    """Size of the file system that holds the folder, or the nearest folder above it that exists."""
    for folder in (state, *state.parents) if state else ():
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        return found.f_blocks * found.f_frsize // 2**20
    return 0


def _cpu_features(cpuinfo: Path) -> tuple[str, ...]:
    """Features of the first CPU; empty on systems other than Linux."""
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
    runtimes = {}
    for name, distributions in _DISTRIBUTIONS.items():
        versions = [version for distribution in distributions if (version := version_of(distribution))]
        if versions:
            runtimes[name] = versions[0]
    return runtimes


def _providers() -> tuple[str, ...]:
    """Execution providers of ONNX Runtime.

    A child process imports it when the device may use another runtime, because an imported library is never unloaded.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    if "onnxruntime" not in sys.modules and any(version_of(name) for name in _OTHERS):
        providers = _providers_of_child()
        if providers is not None:
            return providers
    import onnxruntime  # imported here, because it is slow and often not installed

    return tuple(onnxruntime.get_available_providers())


def _providers_of_child() -> tuple[str, ...] | None:
    """The providers as a child process lists them; None when it fails."""
    command = [sys.executable, "-c", "import onnxruntime; print(*onnxruntime.get_available_providers())"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(output.split())
