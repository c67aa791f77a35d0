"""Reads the condition of this machine from Linux. Whatever a system lacks or writes otherwise counts as unknown."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from device_agents.condition.rules import Condition

_ROOT = Path("/")
_VCGENCMD_SECONDS = 2.0
_HOTTEST = 150_000  # thousandths of a degree; sensors that are not connected show more, or less than zero
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_PI_FLAGS = ("under-voltage", "frequency-capped", "throttled", "soft-temperature-limit")  # bits 0 to 3; 16 to 19
_PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
_TIMESYNCD = "run/systemd/timesync/synchronized"


def read_condition(state: Path, *, root: Path = _ROOT) -> Condition:
    """Read the condition; takes some milliseconds, and never raises for what cannot be read.

    Args:
        state: The agent's state folder, for the free space.
        root: Where ``sys``, ``proc`` and ``run`` are.
    """
    now, since_boot = _throttled(root)
    return Condition(
        temperature_celsius=_temperature(root),
        throttled=now,
        throttled_since_boot=since_boot,
        uptime_hours=_uptime_hours(root),
        clock_synchronised=_clock_synchronised(root),
        disk_free_mib=_disk_free_mib(state),
        memory_free_mib=_memory_free_mib(root),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _number(text: str, base: int = 10) -> int | None:
    try:
        return int(text, base)
    except ValueError:
        return None


def _entries(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted(folder.glob(pattern))
    except OSError:
        return


def _temperature(root: Path) -> int | None:
    found = [_number(_text(zone / "temp")) for zone in _entries(root / "sys/class/thermal", "thermal_zone*")]
    real = [one for one in found if one is not None and 0 < one < _HOTTEST]
    return round(max(real) / 1000) if real else None


def _throttled(root: Path) -> tuple[str, str]:
    """Reasons now, and since the boot; empty where unknown."""
    flags = _number(_text(root / _PI_THROTTLED), 16)
    if flags is None and root == _ROOT:
        flags = _vcgencmd()
    if flags is not None:
        return _reasons(flags), _reasons(flags >> 16)
    capped = _capped(root)
    return ("" if capped is None else "frequency-capped" if capped else "no"), ""


def _reasons(flags: int) -> str:
    return ",".join(name for bit, name in enumerate(_PI_FLAGS) if flags >> bit & 1) or "no"


def _vcgencmd() -> int | None:
    """The flags of an older Raspberry Pi, whose kernel does not show them in /sys."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        said = subprocess.run(
            [program, "get_throttled"], capture_output=True, text=True, timeout=_VCGENCMD_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return _number(said.strip().rpartition("=")[2], 16)


def _capped(root: Path) -> bool | None:
    """Whether the kernel cools by a lower frequency now; None where it has no such means."""
    states = [
        _number(_text(device / "cur_state"))
        for device in _entries(root / "sys/class/thermal", "cooling_device*")
        if "cpufreq" in _text(device / "type")
    ]
    known = [one for one in states if one is not None]
    return any(known) if known else None


def _uptime_hours(root: Path) -> int | None:
    seconds = _number(_text(root / "proc/uptime").partition(".")[0])
    return None if seconds is None else seconds // 3600


def _clock_synchronised(root: Path) -> bool | None:
    if root == _ROOT:
        answer = _adjtimex()
        if answer is not None:
            return answer
    return True if (root / _TIMESYNCD).exists() else None


def _adjtimex() -> bool | None:
    """Ask the kernel if the clock is synchronised; None where that is not allowed, as in the systemd unit's sandbox."""
    try:
        status: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))  # modes 0: changes nothing
    except (OSError, AttributeError):
        return None
    return None if status < 0 else status != _TIME_ERROR


def _disk_free_mib(state: Path) -> int | None:
    try:
        found = os.statvfs(state)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize // 2**20


def _memory_free_mib(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            kibibytes = _number(value.split()[0]) if value.split() else None
            return None if kibibytes is None else kibibytes // 1024
    return None
