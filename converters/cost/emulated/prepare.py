"""Downloads an aarch64 Debian 12 Python, aarch64 wheels and qemu: ``make arm``, or run this module.

Needs apt-get and dpkg (a Debian or Ubuntu host on x86-64) and a package index. Needs no root and installs nothing on
the host: apt uses a separate state folder, and qemu's user mode runs one program without chroot and without binfmt. The
download has about 120 MB.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from converters.cost.emulated.cores import CORES, cpuinfo
from converters.cost.emulated.folder import COMPLETE, PYTHON, arm_folder, interpreter, program, wrapper
from edgekit.errors import EdgekitError, UnavailableError

SOURCES = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
GUEST_PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
    "libsqlite3-0", "libuuid1", "libcrypt1", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
)  # fmt: skip
# The static qemu starts child programs; only the dynamic one has plugins. Its libraries come along, for other hosts.
HOST_PACKAGES = (
    "qemu-user-static", "qemu-user", "libc6", "libcapstone4", "libffi8", "libgcc-s1", "libglib2.0-0", "libgmp10",
    "libgnutls30", "libhogweed6", "libidn2-0", "libnettle8", "libnuma1", "libp11-kit0", "libpcre2-8-0", "libtasn1-6",
    "libunistring2", "liburing2", "zlib1g",
)  # fmt: skip
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")  # the packages have 60 MB of others
# What an emulated count imports. Versions are those of this Python, so that the counted wheel is the installed one.
COUNTED = ("ai-edge-litert", "onnxruntime", "numpy", "msgspec")
THEIR_NEEDS = ("backports-strenum", "flatbuffers", "ml-dtypes", "packaging", "protobuf", "tqdm", "typing-extensions")
PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")

Installer = Callable[[Path], None]


def prepare(home: Path, recipe: str, install: Installer, python_path: str) -> None:
    """Make `home` unless it is complete and made from `recipe`.

    Args:
        home: The folder; everything else in it is removed.
        recipe: Text that changes when the folder must be made again.
        install: Installs wheels into ``home/site``.
        python_path: PYTHONPATH of the emulated Python where it runs without counting.

    Raises:
        UnavailableError: A program is missing, or a download failed.
    """
    if is_made(home, recipe):
        return
    absent = [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]
    if absent:
        raise UnavailableError(
            f"{' and '.join(absent)} not found: the emulated ARM machine is made of Debian packages",
            advice="Use a Debian or Ubuntu host on x86-64; a container does.",
        )
    shutil.rmtree(home, ignore_errors=True)
    for folder in ("apt/state/lists/partial", "apt/cache/archives/partial", "debs/arm64", "debs/amd64"):
        (home / folder).mkdir(parents=True)
    try:
        _fetch_packages(home)
        _unpack(home)
        install(home)
    except subprocess.CalledProcessError as error:
        raise UnavailableError(
            f"the emulated ARM machine cannot be made: {error}", advice="Check the network, and run the command again."
        ) from error
    for core in CORES:
        _write_interpreter(home, core, python_path)
    shutil.rmtree(home / "apt")
    shutil.rmtree(home / "debs")
    (home / COMPLETE).write_text(recipe)


def is_made(home: Path, recipe: str) -> bool:
    """True if `home` is complete and made from `recipe`."""
    try:
        return (home / COMPLETE).read_text() == recipe
    except OSError:
        return False


def own_recipe() -> str:
    """The text of the files that say what is downloaded."""
    return "".join(Path(__file__).with_name(name).read_text() for name in ("prepare.py", "cores.py", "folder.py"))


def _fetch_packages(home: Path) -> None:
    apt = home / "apt"
    (apt / "status").write_text("")
    (apt / "sources.list").write_text(SOURCES)
    options = {
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
        download = ["apt-get", "--quiet", "--quiet", *flags, "download", *packages]
        subprocess.run(download, check=True, cwd=home / "debs" / architecture)


def _unpack(home: Path) -> None:
    for architecture, name in (("arm64", "root"), ("amd64", "host")):
        for package in sorted((home / "debs" / architecture).glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(home / name)], check=True)
    for path in (home / "host" / "usr" / "bin").glob("qemu-*"):
        if path.name not in EMULATORS:
            path.unlink()


def _write_interpreter(home: Path, core: str, python_path: str) -> None:
    root, script = home / f"root-{core}", interpreter(home, core)
    shutil.copytree(home / "root", root, symlinks=True, copy_function=os.link)  # hard links: no second copy
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(cpuinfo(core))
    # Python finds its library and `sys.executable` by its own path: rename the program, put a script in its place.
    script.rename(program(home, core))
    script.write_text(wrapper(home, core, python_path))
    script.chmod(0o755)


def _pins() -> list[str]:
    """The packages that a count needs, in the versions of this Python where they are installed."""
    pins = []
    for name in (*COUNTED, *THEIR_NEEDS):
        try:
            pins.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pins.append(name)
    return pins


def _install_installed_versions(home: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    install += ["--target", str(home / "site"), "--python-version", PYTHON, "--implementation", "cp"]
    install += [f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
    # pip infers no older platform tags from newer ones
    subprocess.run([*install, *(f"--platform={one}_aarch64" for one in PLATFORMS), *_pins()], check=True)


def main() -> int:
    """Make the emulated machine with the runtimes that this Python has."""
    home = arm_folder()
    try:
        prepare(home, own_recipe() + "\n".join(_pins()), _install_installed_versions, str(home / "site"))
    except EdgekitError as error:
        print(f"{error}\n{error.advice}", file=sys.stderr)
        return 1
    print(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
