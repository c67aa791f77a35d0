"""Devices stay light: what an agent's install brings, and what a running agent has loaded."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgekit.trust.keys import generate_key

ROOT = Path(__file__).parent.parent
WORKSTATION_ONLY = {
    "tensorflow", "tensorflow-cpu", "keras", "torch", "sqlalchemy", "alembic", "scikit-learn", "onnx", "scipy",
    "obstore", "amqtt", "jinja2", "ai-edge-quantizer", "tf2onnx", "fastapi", "starlette", "grpcio", "pydantic",
}  # fmt: skip
MODULES = {
    "sqlalchemy", "alembic", "tensorflow", "keras", "torch", "sklearn", "onnx", "scipy", "obstore", "converters",
    "uvicorn", "grpc",
}  # fmt: skip
MARKERS = [
    {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0", "platform_machine": machine}
    for minor in (10, 11, 12, 13)
    for machine in ("aarch64", "x86_64")
]


def closure(requirement: str, environment: dict[str, str], seen: set[tuple[str, str]]) -> Iterator[str]:
    """Every distribution that `requirement` brings, itself included, by the installed metadata."""
    parsed = Requirement(requirement)
    name = canonicalize_name(parsed.name)
    extras = {"", *parsed.extras}
    if all((name, extra) in seen for extra in extras):
        return
    seen.update((name, extra) for extra in extras)
    yield name
    try:
        requires = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return  # only for another Python or machine; its name is counted, its own needs are not known here
    for line in requires:
        wanted = Requirement(line)
        if any(wanted.marker is None or wanted.marker.evaluate({**environment, "extra": extra}) for extra in extras):
            yield from closure(f"{wanted.name}[{','.join(wanted.extras)}]", environment, seen)


@pytest.mark.parametrize("environment", MARKERS, ids=lambda e: f"{e['python_version']}-{e['platform_machine']}")
def test_the_agent_extra_brings_no_workstation_library(environment: dict[str, str]) -> None:
    """`pip install edgekit[agent]` resolves, on every Python and machine, without TensorFlow or SQLAlchemy."""
    brought = set(closure("edgekit[agent,litert,onnx]", environment, set()))
    assert {"paho-mqtt", "tuf", "httptools", "numpy"} <= brought
    assert not brought & WORKSTATION_ONLY


def test_the_convert_extra_is_seen_to_bring_them() -> None:
    """The closure above finds heavy packages where they are wanted, so that its silence means something."""
    brought = set(closure("edgekit[all]", MARKERS[-1], set()))
    assert {"tensorflow-cpu", "sqlalchemy", "obstore", "onnx"} <= brought


def test_a_running_agent_has_loaded_no_workstation_library(tmp_path: Path) -> None:
    """`edgekit-agent run` in a fresh interpreter, up to its ready line and its clean end, imports none of them."""
    generate_key(tmp_path / "device.key")
    (tmp_path / "root.json").write_text("{}")
    settings = 'device = "d"\nfleet = "f"\ntarget = "x86-64"\nbroker = "mqtt://127.0.0.1:9"\nhttp = "127.0.0.1:0"\n'
    (tmp_path / "agent.toml").write_text(settings)
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "device_agents",
        "run",
        "--config",
        str(tmp_path / "agent.toml"),
    ]
    with (tmp_path / "imports.txt").open("w") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert child.stdout is not None
        with child:
            assert " ready at http://" in child.stdout.readline()
            child.terminate()
            assert child.wait(30) == 0
    loaded = {
        line.split("|")[-1].strip().partition(".")[0] for line in (tmp_path / "imports.txt").read_text().splitlines()
    }
    assert {"device_agents", "paho", "tuf", "httptools", "numpy"} <= loaded  # the list is really what was loaded
    assert not loaded & MODULES


def test_constraints_are_hashed_and_name_no_index() -> None:
    """Every pinned package has hashes, and no file says where packages come from."""
    for path in sorted((ROOT / "constraints").glob("*.txt")):
        text = path.read_text()
        pins = re.findall(r"^[a-z0-9].*?==[^\n]*\\$", text, re.MULTILINE)
        assert pins, path
        assert len(pins) == len(re.findall(r"^[a-z0-9][^\n]*==", text, re.MULTILINE)), path
        assert "index-url" not in text, path
        assert "://" not in re.sub(r"#.*", "", text), path


def test_agent_constraints_hold_no_workstation_library() -> None:
    """The pinned file for devices lists none of the workstation's packages."""
    names = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "constraints" / "agent.txt").read_text(), re.MULTILINE))
    assert "paho-mqtt" in names
    assert not names & WORKSTATION_ONLY


def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    """A wheel carries edgekit, converters and device_agents with their data files, and neither tests nor examples."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=120,
        capture_output=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"edgekit", "converters", "device_agents"}
    assert "edgekit/bundle/targets.toml" in names
    assert any(name.startswith("edgekit/migrations/versions/") for name in names)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as source:
        assert any(name.endswith("/pyproject.toml") for name in source.getnames())
