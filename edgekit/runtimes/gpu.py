"""Versions of GPU libraries and driver, on which TensorRT engines depend, and folders of engines."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
from importlib import metadata
from pathlib import Path

from edgekit.errors import RuntimeLoadError

log = logging.getLogger(__name__)

KEPT_ENGINES = 8  # folders; the least recently used are removed

_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
}
_CUDA_LIBRARY = "libcuda.so.1"
_NAME_BYTES = 128
_BOARD = Path("/proc/device-tree/model")  # on a Jetson, whose GPU is part of the board


def gpu_versions() -> dict[str, str]:
    """Versions by name: onnxruntime, tensorrt, driver (its CUDA version), device, board; only those that exist."""
    versions = {}
    for name, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                versions[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    if _BOARD.exists():
        versions["board"] = _BOARD.read_text(errors="replace").strip("\0 \n")
    return {**versions, **_from_driver()}


def engine_folder(cache: Path, key: str) -> Path:
    """Create the folder of a model's engines or mark it as used, and remove the least recently used others.

    Raises:
        RuntimeLoadError: The disk is full or failing.
    """
    folder = cache / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        others = sorted((one for one in cache.iterdir() if one != folder), key=lambda one: one.stat().st_mtime)
        for old in others[: max(0, len(others) - KEPT_ENGINES + 1)]:
            shutil.rmtree(old)
    except OSError as error:
        raise RuntimeLoadError(f"the folder for TensorRT's engines cannot be used: {error}") from error
    return folder


def _from_driver() -> dict[str, str]:
    """Versions from the driver itself, so that no CUDA library must be installed."""
    try:
        driver = ctypes.CDLL(_CUDA_LIBRARY)
        version, device = ctypes.c_int(), ctypes.c_int()
        major, minor = ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        failed = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version))
        failed = failed or driver.cuDeviceGet(ctypes.byref(device), 0)
        failed = failed or driver.cuDeviceGetName(name, _NAME_BYTES, device)
        failed = failed or driver.cuDeviceComputeCapability(ctypes.byref(major), ctypes.byref(minor), device)
    except (OSError, AttributeError):
        return {}
    if failed:
        log.warning("the CUDA driver is installed but returned error %d", failed)
        return {}
    device_name = f"{name.value.decode(errors='replace')} sm_{major.value}{minor.value}"
    return {"driver": str(version.value), "device": device_name}
