"""Finds the accelerators of this machine by the traces of their drivers in Linux, without loading a library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
# A pattern below the root and the name that is reported. /sys is seen also where a service has no /dev.
_TRACES = (
    ("sys/class/apex/apex_*", "coral-edgetpu"),
    ("dev/apex_*", "coral-edgetpu"),
    ("proc/driver/nvidia/version", "nvidia-gpu"),
    ("sys/module/nvgpu", "nvidia-gpu"),
    ("sys/module/galcore", "vivante-npu"),
    ("sys/module/ethosu", "ethos-u"),
    ("dev/ethosu*", "ethos-u"),
    ("sys/module/rknpu", "rockchip-npu"),
    ("sys/class/hailo_chardev/*", "hailo"),
    ("dev/hailo*", "hailo"),
)
_USB = {"1a6e:089a": "coral-edgetpu", "18d1:9302": "coral-edgetpu", "03e7:2485": "movidius"}


def find_accelerators(root: Path = _ROOT) -> tuple[str, ...]:
    """Names of the accelerators, sorted; those that are not known are left out."""
    return tuple(sorted({*_by_driver(root), *_by_usb(root)}))


def _by_driver(root: Path) -> Iterator[str]:
    for pattern, name in _TRACES:
        try:
            if any(True for _ in root.glob(pattern)):
                yield name
        except OSError:
            continue


def _by_usb(root: Path) -> Iterator[str]:
    for vendor in root.glob("sys/bus/usb/devices/*/idVendor"):
        try:
            ids = [one.read_text(errors="replace").strip() for one in (vendor, vendor.with_name("idProduct"))]
        except OSError:  # unplugged just now
            continue
        if found := _USB.get(":".join(ids).lower()):
            yield found
