"""Compatibility of bundles and devices: all mismatches are reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit.bundle.compat import Facts, mismatches
from tests.simulators.small_models import onnx_bundle

DEVICE = Facts(
    target="x86-64",
    arch="x86_64",
    memory_mib=1024,
    cpu_features=("avx2",),
    runtimes={"onnxruntime": "1.31.0"},
    providers=("CPUExecutionProvider",),
)


def found(tmp_path: Path, device: Facts = DEVICE, **changes: Any) -> list[str]:
    return mismatches(msgspec.structs.replace(onnx_bundle(tmp_path), **changes), device)


def test_a_bundle_for_this_device_fits(tmp_path: Path) -> None:
    """All demands are met; versions are compared as numbers."""
    demands = {"arch": "x86_64", "memory_mib": 1024, "runtime_version": "1.4", "providers": ["CPUExecutionProvider"]}
    assert found(tmp_path) == []
    assert found(tmp_path, requires=demands) == []
    assert found(tmp_path, requires={"arch": "any", "cpu_features": ["avx2"]}) == []


def test_all_reasons_come_together(tmp_path: Path) -> None:
    """One call reports target, runtime version, arch, memory and provider."""
    demands = {"arch": "aarch64", "memory_mib": 2048, "runtime_version": "1.32", "providers": ["TensorrtX"]}
    reasons = found(tmp_path, target="jetson-orin", requires=demands)
    assert reasons == [
        "it is for target 'jetson-orin', this device is 'x86-64'",
        "it needs onnxruntime 1.32 or later, this device has 1.31.0",
        "it needs arch aarch64, this device is x86_64",
        "it needs 2048 MiB of memory, this device has 1024",
        "it needs providers TensorrtX, this device has CPUExecutionProvider",
    ]


def test_a_runtime_that_is_not_installed_is_a_reason(tmp_path: Path) -> None:
    """The reason lists installed runtimes; tflite-runtime replaces litert if no version is demanded."""
    assert found(tmp_path, runtime="litert") == ["it needs runtime litert, this device has onnxruntime 1.31.0"]
    older = msgspec.structs.replace(DEVICE, runtimes={"tflite-runtime": "2.14.0"})
    assert found(tmp_path, older, runtime="litert") == []
    (reason,) = found(tmp_path, older, runtime="litert", requires={"runtime_version": "2.1"})
    assert reason == "it needs runtime litert, this device has tflite-runtime 2.14.0"


@pytest.mark.parametrize(
    ("demand", "says"),
    [({"gpu": True}, "does not support"), ({"memory_mib": "much"}, "wrong type"), ({"arch": 3}, "wrong type")],
)
def test_a_demand_that_cannot_be_judged_is_a_reason(demand: dict[str, Any], says: str, tmp_path: Path) -> None:
    """A demand that this release does not support is a mismatch."""
    (reason,) = found(tmp_path, requires=demand)
    assert says in reason
