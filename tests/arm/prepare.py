"""Downloads an aarch64 Debian 12 Python, the agent's aarch64 wheels and qemu into ``.arm/``: ``make arm``.

Needs apt-get and dpkg (a Debian or Ubuntu host on x86-64) and a package index. Needs no root and installs nothing on
the host: apt uses a separate state folder, and qemu's user mode runs one program without chroot and without binfmt. The
download has about 100 MB. The wheels and their hashes are those of ``constraints/agent.txt``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".arm"
DONE = "made-from"  # holds the recipe of a complete .arm/; main makes the folder again if the recipe changes

PYTHON = "3.11"
SOURCES = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
GUEST_PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
    "libsqlite3-0", "libuuid1", "libcrypt1", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
)  # fmt: skip
HOST_PACKAGES = ("qemu-user-static",)

# The part number of each core in /proc/cpuinfo. ONNX Runtime reads that file, not only HWCAP: it crashes with the file
# of an x86 host, and uses missing instructions if the file names a newer core than the one that qemu emulates.
CORES = {"cortex-a72": "0xd08", "cortex-a76": "0xd0b"}  # Raspberry Pi 4 and Raspberry Pi 5
FEATURES = {
    "cortex-a72": "fp asimd evtstrm crc32 cpuid",
    "cortex-a76": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
}


def cpuinfo(core: str) -> str:
    """``/proc/cpuinfo`` of a machine with two of these cores, in the format of Linux on arm64."""
    lines = (
        "BogoMIPS\t: 108.00",
        f"Features\t: {FEATURES[core]}",
        "CPU implementer\t: 0x41",
        "CPU architecture: 8",
        "CPU variant\t: 0x0",
        f"CPU part\t: {CORES[core]}",
        "CPU revision\t: 3",
    )
    return "\n".join("\n".join((f"processor\t: {number}", *lines, "")) for number in range(2)) + "\n"


def interpreter(core: str) -> Path:
    """Path of the emulated Python of a core. Child processes started by its `sys.executable` are emulated too."""
    return HOME / f"root-{core}" / "usr" / "bin" / f"python{PYTHON}"


def _recipe() -> str:
    return Path(__file__).read_text() + (ROOT / "constraints" / "agent.txt").read_text()


def is_made() -> bool:
    """True if ``.arm/`` is complete and made from the current recipe."""
    try:
        return (HOME / DONE).read_text() == _recipe()
    except OSError:
        return False


def main() -> int:
    """Make ``.arm/`` unless it is complete and current."""
    if is_made():
        return 0
    missing = [program for program in ("apt-get", "dpkg") if shutil.which(program) is None]
    if missing:
        print(f"{' and '.join(missing)} not found: make arm needs a Debian or Ubuntu host", file=sys.stderr)
        return 1
    shutil.rmtree(HOME, ignore_errors=True)
    for folder in ("apt/state/lists/partial", "apt/cache/archives/partial", "debs"):
        (HOME / folder).mkdir(parents=True)
    _fetch_packages()
    _unpack()
    _install_wheels()
    for core in CORES:
        _write_interpreter(core)
    shutil.rmtree(HOME / "apt")
    shutil.rmtree(HOME / "debs")
    (HOME / DONE).write_text(_recipe())
    return 0


def _fetch_packages() -> None:
    apt = HOME / "apt"
    (apt / "status").write_text("")
    (apt / "sources.list").write_text(SOURCES)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Dir::Etc::sourcelist": str(apt / "sources.list"),
        "Dir::Etc::sourceparts": "-",
        "Dir::State": str(apt / "state"),
        "Dir::State::status": str(apt / "status"),
        "Dir::Cache": str(apt / "cache"),
    }
    for architecture, packages in (("arm64", GUEST_PACKAGES), ("amd64", HOST_PACKAGES)):
        options["APT::Architecture"] = options["APT::Architectures::"] = architecture
        flags = [f"--option={name}={value}" for name, value in options.items()]
        subprocess.run(["apt-get", "--quiet", "--quiet", *flags, "update"], check=True)
        subprocess.run(["apt-get", "--quiet", "--quiet", *flags, "download", *packages], check=True, cwd=HOME / "debs")


def _unpack() -> None:
    for package in sorted((HOME / "debs").glob("*_arm64.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(HOME / "root")], check=True)
    for package in sorted((HOME / "debs").glob("*_amd64.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(HOME / "host")], check=True)


def _install_wheels() -> None:
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(HOME / "site")]
    install += ["--python-version", PYTHON, "--python-platform", "aarch64-manylinux_2_36"]
    pinned = ["--only-binary", ":all:", "--require-hashes", "--requirement", "constraints/agent.txt"]
    subprocess.run([*install, *pinned], check=True, cwd=ROOT)
    images = HOME / "images.txt"  # edgekit[images], for bundles that decode images
    images.write_text(_pinned("pillow"))
    pinned[-1] = str(images)
    subprocess.run([*install, *pinned], check=True, cwd=ROOT)
    # Installs only edgekit's metadata: its code is on PYTHONPATH.
    subprocess.run([*install, "--no-build-isolation", "--editable", "."], check=True, cwd=ROOT)


def _pinned(package: str) -> str:
    """The entries of a package in ``constraints/all.txt``: one version for each Python, with hashes."""
    entries = re.split(r"^(?=\S)", (ROOT / "constraints" / "all.txt").read_text(), flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.startswith(f"{package}=="))


def _write_interpreter(core: str) -> None:
    root, wrapper = HOME / f"root-{core}", interpreter(core)
    shutil.copytree(HOME / "root", root, symlinks=True, copy_function=os.link)  # hard links: no second copy
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(cpuinfo(core))
    # Python finds its library and `sys.executable` by its own path: rename the program, put a script in its place.
    program = wrapper.with_name(wrapper.name + "-aarch64")
    wrapper.rename(program)
    qemu = HOME / "host" / "usr" / "bin" / "qemu-aarch64-static"
    python_path = f"PYTHONPATH={HOME / 'site'}:{ROOT}"
    command = ["exec", "env", python_path, str(qemu), "-cpu", core, "-L", str(root), "-0", str(wrapper), str(program)]
    wrapper.write_text(f'#!/bin/sh\n{shlex.join(command)} "$@"\n')
    wrapper.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
