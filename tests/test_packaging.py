"""Packages: the agent's dependencies and imports, the constraints, the wheel, and other operating systems."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgekit import __version__
from edgekit.trust.keys import generate_key
from tests.release import check

ROOT = Path(__file__).parent.parent
WORKSTATION_ONLY = {
    "tensorflow", "tensorflow-cpu", "keras", "torch", "sqlalchemy", "alembic", "scikit-learn", "onnx", "scipy",
    "obstore", "amqtt", "jinja2", "litert-quantizer", "tf2onnx", "fastapi", "starlette", "grpcio", "pydantic",
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
    """Every distribution that `requirement` needs, itself included, according to the installed metadata."""
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
        return  # only for another Python or machine: its own requirements are unknown here
    for line in requires:
        needed = Requirement(line)
        if any(needed.marker is None or needed.marker.evaluate({**environment, "extra": extra}) for extra in extras):
            yield from closure(f"{needed.name}[{','.join(needed.extras)}]", environment, seen)


@pytest.mark.parametrize("environment", MARKERS, ids=lambda e: f"{e['python_version']}-{e['platform_machine']}")
def test_the_agent_extra_brings_no_workstation_library(environment: dict[str, str]) -> None:
    """`pip install edgekit[agent]` resolves, on every Python and machine, without TensorFlow or SQLAlchemy."""
    installed = set(closure("edgekit[agent,litert,onnx]", environment, set()))
    assert {"paho-mqtt", "tuf", "httptools", "numpy"} <= installed
    assert not installed & WORKSTATION_ONLY


def test_the_convert_extra_is_seen_to_bring_them() -> None:
    """`closure` finds the heavy packages of edgekit[all], so the test above can fail."""
    installed = set(closure("edgekit[all]", MARKERS[-1], set()))
    assert {"tensorflow-cpu", "sqlalchemy", "obstore", "onnx"} <= installed


def test_a_running_agent_has_loaded_no_workstation_library(tmp_path: Path) -> None:
    """`edgekit-agent run` imports no workstation library from its start to its end after SIGTERM."""
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
            assert child.wait(120) == 0
    loaded = {
        line.split("|")[-1].strip().partition(".")[0] for line in (tmp_path / "imports.txt").read_text().splitlines()
    }
    known = {"device_agents", "paho", "tuf", "httptools", "numpy"}
    assert known <= loaded  # the list of imports is complete
    assert not loaded & MODULES


def test_constraints_are_hashed_and_name_no_index() -> None:
    """Every pinned package has hashes, and no constraints file names a package index."""
    for path in sorted((ROOT / "constraints").glob("*.txt")):
        text = path.read_text()
        pins = re.findall(r"^[a-z0-9].*?==[^\n]*\\$", text, re.MULTILINE)
        assert pins, path
        assert len(pins) == len(re.findall(r"^[a-z0-9][^\n]*==", text, re.MULTILINE)), path
        assert "index-url" not in text, path
        assert "://" not in re.sub(r"#.*", "", text), path


def test_agent_constraints_hold_no_workstation_library() -> None:
    """constraints/agent.txt has no package that only workstations need."""
    names = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "constraints" / "agent.txt").read_text(), re.MULTILINE))
    assert "paho-mqtt" in names
    assert not names & WORKSTATION_ONLY


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return folder


def test_wheel_and_sdist_hold_the_three_packages_with_their_data(built: Path) -> None:
    """The wheel and the sdist have each file of edgekit, converters and device_agents, and the licence."""
    names = check.source_files()
    assert {"edgekit/bundle/targets.toml", "converters/backends/accelerators.toml"} <= names
    assert any(name.endswith("report.html.j2") for name in names)
    assert any("/migrations/versions/" in name for name in names)
    check.check_contents(built)


def test_the_version_is_stated_once(built: Path) -> None:
    """The metadata of the wheel states `edgekit.__version__`, and no other file of the project states a version."""
    with zipfile.ZipFile(check.distributions(built)[0]) as wheel:
        text = wheel.read(f"edgekit-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert not re.search(r"^version\s*=", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    statement = re.compile(r"""version\(["']edgekit["']\)|__version__ = """)
    files = {name: (ROOT / name).read_text() for name in check.source_files() if name.endswith(".py")}
    assert [name for name, code in files.items() if statement.search(code)] == ["edgekit/__init__.py"]


@pytest.mark.soak
def test_a_release_answers_from_an_empty_environment(built: Path, tmp_path: Path) -> None:
    """Commands of the installed wheel run, and its agent installs a rolled out model and answers over HTTP."""
    check.check_installed(check.distributions(built)[0], tmp_path)


WORKSTATIONS = {"aarch64-apple-darwin": "14.0", "x86_64-pc-windows-msvc": ""}


@pytest.mark.soak
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", WORKSTATIONS)
def test_workstations_of_other_systems_resolve_from_the_constraints(platform: str, python: str, tmp_path: Path) -> None:
    """Every pinned package of convert, registry and controller has a wheel for macOS 14 (arm64) and Windows.

    The test queries a package index and installs nothing.
    """
    out = tmp_path / "resolved.txt"
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", str(ROOT / "pyproject.toml")]
    command += [word for extra in ("convert", "registry", "controller") for word in ("--extra", extra)]
    command += ["--constraint", str(ROOT / "constraints" / "all.txt"), "--only-binary", ":all:", "--no-header"]
    command += ["--python-platform", platform, "--python-version", python, "--quiet", "--output-file", str(out)]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": WORKSTATIONS[platform]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pin = re.compile(r"^([a-z0-9.-]+)==([^ ;\n]+)", re.MULTILINE)
    resolved = set(pin.findall(out.read_text()))
    assert {"ai-edge-litert", "keras", "obstore", "onnxruntime", "sqlalchemy", "tuf"} <= {name for name, _ in resolved}
    assert {"tensorflow", "tensorflow-cpu"} & {name for name, _ in resolved}
    assert resolved <= set(pin.findall((ROOT / "constraints" / "all.txt").read_text()))
