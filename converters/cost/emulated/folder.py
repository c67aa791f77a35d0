"""Where the emulated machine lies, what it has, and the command lines that run programs on it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from converters.cache import cache_root
from converters.cost.emulated.cores import CORES
from edgekit.errors import UnavailableError

VARIABLE = "EDGEKIT_ARM"
COMPLETE = "made-from"  # holds the recipe of a complete folder
PYTHON = "3.11"
COMPILERS = ("cc", "gcc", "clang")
PLUGIN_SOURCE = Path(__file__).with_name("count.c")
SOURCE_TREE = Path(__file__).resolve().parents[3]
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def arm_folder() -> Path:
    """The folder of the emulated machine: EDGEKIT_ARM, ``.arm`` of a source tree, or a folder in the user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    return SOURCE_TREE / ".arm" if in_source_tree() else cache_root() / "arm"


def in_source_tree() -> bool:
    """True if this package is run from a source tree, which has `make arm`."""
    return (SOURCE_TREE / "Makefile").is_file() and (SOURCE_TREE / "constraints" / "agent.txt").is_file()


def missing() -> tuple[str, str] | None:
    """The parts that are missing to count instructions here, and a sentence with what to do; None if nothing is."""
    home = arm_folder()
    if (platform.system(), platform.machine().lower()) not in (("Linux", "x86_64"), ("Linux", "amd64")):
        return "the emulator runs on x86-64 Linux only", "Run it on such a machine, or profile a board with --on host."
    if not (home / COMPLETE).is_file():
        return f"{home} has no emulated ARM machine", f"Run: {prepare_command()}"
    absent = [core for core in CORES if not program(home, core).is_file()]
    if absent or not _emulator(home).is_file():
        what = f"the emulated {' and '.join(absent)}" if absent else "qemu with plugins"
        return f"{home} was made by an older edgekit, and has not {what}", f"Run: {prepare_command()}"
    if not _plugin_path(home).is_file() and _compiler() is None:
        return "there is no C compiler to build the plugin for qemu", "Run: apt-get install gcc"
    return None


def prepare_command() -> str:
    """The command that makes the emulated machine."""
    return "make arm" if in_source_tree() else "python -m converters.cost.emulated.prepare"


def program(home: Path, core: str) -> Path:
    """Path of a core's Python program, which is an aarch64 one."""
    return home / f"root-{core}" / "usr" / "bin" / f"python{PYTHON}-aarch64"


def interpreter(home: Path, core: str) -> Path:
    """Path of the script that runs a core's Python. Children started by its `sys.executable` are emulated too."""
    return home / f"root-{core}" / "usr" / "bin" / f"python{PYTHON}"


def counting_command(home: Path, core: str) -> list[str]:
    """The command that runs a core's Python and counts its instructions.

    qemu runs with its own C library and loader, so it does not depend on the host's. PYTHONPATH and other variables of
    the caller's environment reach the emulated program.

    Raises:
        UnavailableError: The plugin cannot be compiled.
    """
    host, root, plugin = home / "host", home / f"root-{core}", _plugin(home)
    libraries = ":".join(str(host / folder) for folder in _LIBRARIES)
    loader = [str(host / "lib64" / "ld-linux-x86-64.so.2"), "--library-path", libraries, "--preload", str(plugin)]
    qemu = [str(_emulator(home)), "-cpu", core, "-plugin", str(plugin), "-L", str(root)]
    return [*loader, *qemu, "-0", str(interpreter(home, core)), str(program(home, core))]


def wrapper(home: Path, core: str, python_path: str) -> str:
    """The script at `interpreter`: runs programs at full speed, without counting, with qemu's static build."""
    root, qemu = home / f"root-{core}", home / "host" / "usr" / "bin" / "qemu-aarch64-static"
    command = ["exec", "env", f"PYTHONPATH={python_path}", str(qemu), "-cpu", core, "-L", str(root)]
    command += ["-0", str(interpreter(home, core)), str(program(home, core))]
    return f'#!/bin/sh\n{shlex.join(command)} "$@"\n'


def _emulator(home: Path) -> Path:
    return home / "host" / "usr" / "bin" / "qemu-aarch64"


def _plugin(home: Path) -> Path:
    """The compiled plugin; compiles it if it is missing or its source changed."""
    path = _plugin_path(home)
    if path.is_file():
        return path
    compiler = _compiler()
    if compiler is None:
        raise UnavailableError("there is no C compiler to build the plugin for qemu", advice="Run: apt-get install gcc")
    temporary = path.with_suffix(f".{os.getpid()}")
    flags = ["-O2", "-fPIC", "-shared", "-nostdlib", "-fvisibility=hidden"]
    done = subprocess.run(
        [compiler, *flags, "-o", str(temporary), str(PLUGIN_SOURCE)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(
            f"{compiler} cannot compile {PLUGIN_SOURCE.name}: {done.stderr.strip()[-500:]}",
            advice="Install a C compiler for x86-64 Linux: apt-get install gcc",
        )
    temporary.replace(path)
    return path


def _plugin_path(home: Path) -> Path:
    return home / f"count-{_source_digest()}.so"


@functools.cache
def _source_digest() -> str:
    return hashlib.sha256(PLUGIN_SOURCE.read_bytes()).hexdigest()[:12]


def _compiler() -> str | None:
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)
