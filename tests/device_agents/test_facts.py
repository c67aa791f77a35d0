"""Facts of a device, measured on this machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from device_agents.facts import measure_facts


def test_facts_are_those_of_this_machine() -> None:
    """Architecture, memory, runtimes and providers are what the system says."""
    facts = measure_facts("raspberry-pi-4")
    assert facts.target == "raspberry-pi-4"
    assert facts.arch == {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    assert facts.memory_mib > 64
    assert facts.runtimes["onnxruntime"] == metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in facts.providers
    assert facts.python == platform.python_version()
    assert facts.cpus == len(os.sched_getaffinity(0))


def test_disk_and_tags_come_from_the_settings(tmp_path: Path) -> None:
    """The file system is that of the state folder, also before the folder exists."""
    facts = measure_facts("x", state=tmp_path / "not" / "yet", tags={"site": "north"})
    found = os.statvfs(tmp_path)
    assert facts.disk_mib == found.f_blocks * found.f_frsize // 2**20
    assert facts.tags == {"site": "north"}


def test_cpu_features_are_read_in_the_words_of_arm_and_of_x86(tmp_path: Path) -> None:
    """The first CPU's features, sorted; none where the system tells none."""
    for line in ("Features\t: fp asimd asimddp", "flags\t\t: fp asimd asimddp"):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor : 1\n{line} more\n")
        assert measure_facts("x", cpuinfo=tmp_path / "cpuinfo").cpu_features == ("asimd", "asimddp", "fp")
    assert measure_facts("x", cpuinfo=tmp_path / "none").cpu_features == ()


def test_naming_the_providers_leaves_onnx_runtime_out_of_this_process() -> None:
    """Beside LiteRT a child asks: the library would cost the agent its memory for ever."""
    code = (
        "import sys; from device_agents.facts import measure_facts; found = measure_facts('x86-64');"
        "print('CPUExecutionProvider' in found.providers, 'onnxruntime' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240).stdout
    assert said.split() == ["True", "False"]
