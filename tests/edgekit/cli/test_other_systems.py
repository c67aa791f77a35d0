"""Workstations with macOS or Windows, as far as Linux can pretend to be them: tests/simulators/other_system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.manifest import MANIFEST_NAME
from edgekit.cli.main import COMMANDS
from edgekit.storage.stores import _folder_of
from tests.simulators.conv_models import residual
from tests.simulators.models import saved

ROOT = Path(__file__).parents[3]
SYSTEMS = ("darwin", "win32")
BUNDLE = "bundles/small-1.0.0-raspberry-pi-4"
SETTINGS = {name for name in os.environ if name.startswith(("EDGEKIT_", "PYTHON"))}


def run(system: str, folder: Path, *command: str, **more: str) -> str:
    """What a command prints on a system; it must succeed."""
    environment = {name: text for name, text in os.environ.items() if name not in SETTINGS}
    environment |= {
        "PRETEND_SYSTEM": system,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "simulators" / "other_system"), str(ROOT)]),
        "PYTHONIOENCODING": "cp1252",  # of a pipe on Windows
        "XDG_CACHE_HOME": str(folder / "cache"),
        **more,
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, encoding="cp1252", timeout=300
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-3000:]}"
    return done.stdout


def edgekit(system: str, folder: Path, *words: str) -> str:
    """What the real command prints."""
    return run(system, folder, "-m", "edgekit", "--verbose", *words)


# Run as a module of edgekit's; prints the names of what is there although it should not be.
PROBE = """
import os, signal, sys, tempfile, socket
from pathlib import Path

def reached(name, attempt):
    try:
        attempt()
    except (ImportError, AttributeError, OSError, AssertionError):
        return
    print(name)

def open_and_remove():
    with open("held.txt", "wb"):
        os.unlink("held.txt")

def line_ends():
    Path("lines.txt").write_text("a\\n", encoding="utf-8")
    assert Path("lines.txt").read_bytes() == b"a\\n"

for module in ("fcntl", "resource", "pwd", "termios"):
    reached(module, lambda: __import__(module, globals()))
for name in ("fork", "memfd_create", "killpg", "getuid", "sched_getaffinity", "sysconf", "O_DIRECTORY", "pread"):
    reached(name, lambda: getattr(os, name))
for name in ("SIGKILL", "SIGHUP"):
    reached(name, lambda: getattr(signal, name))
reached("AF_UNIX", lambda: socket.AF_UNIX)
reached("/proc", lambda: Path("/proc/cpuinfo").read_text(encoding="utf-8"))
reached("open folder", lambda: os.open(".", os.O_RDONLY))
reached("no encoding", lambda: Path("some.txt").write_text("x"))
reached("symlink", lambda: os.symlink("a", "b"))
reached("open file removed", open_and_remove)
reached("line ends", line_ends)
reached("forbidden name", lambda: open("a:b", "wb").close())
print(sys.platform, os.name)
"""
AS_OURS = "import builtins, sys; exec(sys.argv[1], {'__name__': 'edgekit.probe', '__builtins__': builtins})"


def test_the_pretence_hides_what_the_systems_lack(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    assert run("win32", tmp_path, "-c", AS_OURS, PROBE).splitlines() == ["win32 nt"]
    on_mac = run("darwin", tmp_path, "-c", AS_OURS, PROBE).splitlines()
    assert on_mac[-1] == "darwin posix"
    assert {"fcntl", "fork", "SIGKILL", "O_DIRECTORY"} <= set(on_mac)
    assert not {"memfd_create", "sched_getaffinity", "/proc"} & set(on_mac)
    here = run("", tmp_path, "-c", AS_OURS, PROBE).splitlines()
    assert {"memfd_create", "sched_getaffinity", "/proc"} <= set(here)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_command_can_be_imported(system: str, tmp_path: Path) -> None:
    """Also those that only Linux runs: their help is there everywhere."""
    code = "import click; from edgekit.cli.main import edgekit as e, COMMANDS as c; k = click.Context(e); "
    code += "print(*(e.get_command(k, noun).name for noun in c))"
    assert run(system, tmp_path, "-c", code).split() == list(COMMANDS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_memory_is_told(system: str, tmp_path: Path) -> None:
    """How many processes convert at a time, and how many images may be loaded, depends on it."""
    code = "from converters.machine import *; print(memory_bytes(), free_memory_bytes())"
    total, free = map(int, run(system, tmp_path, "-c", code).split())
    assert total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= total


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_publisher_at_a_time(system: str, tmp_path: Path) -> None:
    """The registry's lock keeps a second writer out, and ends with the first one."""
    code = """
from edgekit.errors import UnavailableError
from edgekit.storage.stores import open_store
first, second = open_store("file://registry"), open_store("file://registry")
with first.lock():
    try:
        with second.lock(0.0):
            print("both")
    except UnavailableError:
        print("refused")
with second.lock(0.0):
    print("taken")
"""
    assert run(system, tmp_path, "-c", code).split() == ["refused", "taken"]


@pytest.mark.parametrize(
    ("path", "windows", "folder"),
    [
        ("/C:/fleet/registry", True, "C:/fleet/registry"),
        ("C:\\fleet\\registry", True, "C:\\fleet\\registry"),
        ("registry", True, "registry"),
        ("/srv/my%20registry", False, "/srv/my registry"),
        ("/C:/fleet", False, "/C:/fleet"),
    ],
)
def test_a_file_url_may_name_a_drive(path: str, windows: bool, folder: str) -> None:
    """Both ways to write a drive of Windows lead to it; elsewhere a path stays what it is."""
    assert _folder_of(path, windows=windows) == folder


@pytest.fixture(scope="module")
def workstations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each system, in which it has converted the same model for a Raspberry Pi 4.

    Takes half a minute: each system imports TensorFlow, as it would at home.
    """
    folders = {}
    for system in SYSTEMS:
        folder = folders[system] = tmp_path_factory.mktemp(system)
        saved(residual().model, folder / "model.onnx")
        x = np.random.default_rng(0).normal(size=(120, 3, 16, 16)).astype(np.float32)
        np.savez(folder / "data.npz", x=x)
        options = ["--recipe", "int8", "--max-drop", "1", "--accept-unproven", "--name", "small", "--version", "1.0.0"]
        words = ["model.onnx", "--target", "raspberry-pi-4", "--data", "data.npz", *options]
        edgekit(system, folder, "convert", *words)
    edgekit("win32", folder, "convert", *words, "--confidence", "0.9")  # replaces the bundle, with what is in the cache
    return folders


@pytest.mark.heavy
def test_the_systems_make_the_same_bundle(workstations: dict[str, Path]) -> None:
    """The model and the golden samples are equal bit by bit, and no text has the line ends of a system."""
    mac, windows = (folder / BUNDLE for folder in workstations.values())
    names = {file.name for file in mac.iterdir()}
    assert names == {file.name for file in windows.iterdir()}
    assert {MANIFEST_NAME, "model.tflite", "golden.npz", "report.html"} <= names
    for name in ("model.tflite", "golden.npz"):
        assert (mac / name).read_bytes() == (windows / name).read_bytes(), name
    for name in (MANIFEST_NAME, "report.json", "report.html"):
        assert b"\r" not in (windows / name).read_bytes(), name


@pytest.mark.heavy
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_workstation_publishes_enrolls_and_plans(system: str, workstations: dict[str, Path]) -> None:
    """The real commands: inspect, compare, publish, verify, enroll a device; plan, start and end a rollout."""
    folder = workstations[system]
    assert "small" in edgekit(system, folder, "inspect", BUNDLE)
    assert "agreement" in edgekit(system, folder, "compare", "model.onnx", BUNDLE, "--data", "data.npz")
    edgekit(system, folder, "registry", "init")
    edgekit(system, folder, "registry", "publish", BUNDLE)
    assert "small" in edgekit(system, folder, "registry", "list")
    edgekit(system, folder, "registry", "verify")
    edgekit(system, folder, "device", "enroll", "pi-1", "--target", "raspberry-pi-4", "-o", "pi-1")
    assert b"\r" not in (folder / "pi-1" / "agent.toml").read_bytes()
    assert [row["device"] for row in json.loads(edgekit(system, folder, "device", "list", "--json"))] == ["pi-1"]
    plan = edgekit(system, folder, "rollout", "start", "small", "1.0.0", "--dry-run")
    assert "raspberry-pi-4" in plan
    assert not json.loads(edgekit(system, folder, "rollout", "list", "--json"))
    edgekit(system, folder, "rollout", "start", "small", "1.0.0")
    edgekit(system, folder, "rollout", "abort", "1")
    assert [row["state"] for row in json.loads(edgekit(system, folder, "rollout", "list", "--json"))] == ["ABORTED"]
