"""Facts of this machine that the start needs: its architecture, and which boot this is."""

from __future__ import annotations

import platform
from pathlib import Path

_ARCHES = {"arm64": "aarch64", "amd64": "x86_64"}


def machine_arch() -> str:
    """Architecture of this machine's processor, as in `Facts.arch`."""
    machine = platform.machine().lower()
    return _ARCHES.get(machine, machine)


def boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Boot id of this machine (Linux); empty where the system has none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
