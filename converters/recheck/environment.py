"""Makes the environments that other runtime versions run in, and keeps them in the user's cache.

Each is made beside its place and renamed when it is complete, so two commands at once, or a killed one, leave no part
of one. Only wheels are installed: nothing of the package index is built or run while it is installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from converters.cache import cache_root
from converters.cost.emulated.folder import PYTHON as EMULATED_PYTHON
from converters.cost.emulated.folder import arm_folder, missing
from converters.cost.emulated.prepare import PLATFORMS
from converters.cost.measuring.process import HOST, child_command
from converters.recheck.packages import MODULES, PYTHONS, fits_python, needs_old_numpy, requirements
from edgekit.bundle.evidence import RuntimeVersion
from edgekit.errors import NotFoundError, UnavailableError
from edgekit.runtimes import LITERT, ONNXRUNTIME
from edgekit.versions import runtime_version

RUNTIMES = (LITERT, ONNXRUNTIME)
INSTALL_SECONDS = 1800.0
CHECK_SECONDS = 300.0
PART = ".part-"
ABANDONED_SECONDS = 86_400.0
_NO_VERSION = ("No matching distribution", "Could not find a version")
_NO_NETWORK = ("NewConnectionError", "ConnectTimeout", "Connection", "Temporary failure in name resolution")


class Environment(NamedTuple):
    """A Python with one runtime version.

    Attributes:
        wanted: The runtime version.
        where: `HOST` or an emulated core.
        python: On the host, its Python; None for this one.
        site: On an emulated core, the folder of its packages; None for those that were prepared.
    """

    wanted: RuntimeVersion
    where: str
    python: Path | None = None
    site: Path | None = None

    @property
    def folder(self) -> str:
        """Where it is kept; empty where nothing was made."""
        found = self.site or (self.python.parents[1] if self.python else None)
        return str(found) if found else ""


def environment_for(wanted: RuntimeVersion, where: str) -> Environment:
    """The environment of a runtime version; it is made unless it is kept or this Python has that version.

    Its version is the one that the installed package states: 1.23 means 1.23.0, and that is what devices report.

    Raises:
        NotFoundError: the package index has no such version for a Python that is installed here.
        UnavailableError: the index cannot be reached, a program is missing, or the package cannot be imported.
    """
    made = _environment(wanted, where)
    return made._replace(wanted=RuntimeVersion(wanted.package, _stated(made) or wanted.version))


def _environment(wanted: RuntimeVersion, where: str) -> Environment:
    if where != HOST:
        return _emulated(wanted, where)
    if str(wanted) in {runtime_version(runtime) for runtime in RUNTIMES}:  # what the adapters take here
        return Environment(wanted, where)
    tried = []
    for python, version in _pythons():
        if not fits_python(wanted, version):
            continue
        tried.append("{}.{}".format(*version))
        folder = _folder(wanted, f"py{tried[-1]}-{platform.machine().lower()}")
        if _kept(Environment(wanted, where, python=_python_of(folder))) or _made(wanted, where, folder, python):
            return Environment(wanted, where, python=_python_of(folder))
    raise _nothing(wanted, tried)


def _emulated(wanted: RuntimeVersion, where: str) -> Environment:
    if lacking := missing():
        what, advice = lacking
        raise UnavailableError(f"{where} cannot be emulated: {what}", advice=advice)
    if _installed(wanted.package, arm_folder() / "site") == wanted.version:
        return Environment(wanted, where)
    folder = _folder(wanted, f"py{EMULATED_PYTHON}-aarch64")
    made = Environment(wanted, where, site=folder)
    version = (int(EMULATED_PYTHON.partition(".")[0]), int(EMULATED_PYTHON.partition(".")[2]))
    if _kept(made) or (fits_python(wanted, version) and _made(wanted, where, folder, None)):
        return made
    raise _nothing(wanted, [EMULATED_PYTHON], architecture="aarch64")


def _nothing(wanted: RuntimeVersion, tried: list[str], architecture: str = "") -> NotFoundError:
    kind = f"{architecture or platform.machine().lower()} Linux wheel"
    fitting = [f"3.{minor}" for _, minor in PYTHONS if fits_python(wanted, (3, minor))]
    if not tried:
        return NotFoundError(
            f"{wanted} needs Python {' or '.join(fitting)}, and there is none on PATH",
            advice=f"Install one, for example: uv python install {fitting[-1]}, or apt-get install "
            f"python{fitting[-1]}; it must run as python{fitting[-1]}.",
        )
    return NotFoundError(
        f"the package index has no {kind} of {wanted} for Python {', '.join(tried)}",
        advice=f"See the versions that exist: pip index versions {wanted.package}. For an older one, a Python of its "
        f"time must be on PATH, as python3.10 or python3.11.",
    )


def _folder(wanted: RuntimeVersion, kind: str) -> Path:
    kind += "-numpy1" if needs_old_numpy(wanted) else ""
    return cache_root() / "recheck" / f"{wanted.package}-{wanted.version}-{kind}"


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


@functools.cache
def _pythons() -> list[tuple[Path, tuple[int, int]]]:
    """The Pythons that run here with their versions: this one first, then those on PATH, the newest first."""
    found = [(Path(sys.executable), sys.version_info[:2])]
    for major, minor in reversed(PYTHONS):
        path = shutil.which(f"python{major}.{minor}")
        if (major, minor) != found[0][1] and path is not None and _runs(Path(path), "import venv"):
            found.append((Path(path), (major, minor)))
    return found


def _runs(python: Path, code: str) -> bool:
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, timeout=CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0  # a shim of a version manager may stand for a Python that is not there


def _installed(package: str, site: Path) -> str:
    """Version of a package in a folder of packages; empty where it has none."""
    found = importlib.metadata.distributions(name=package, path=[str(site)])
    return next((one.version for one in found), "")


def _stated(made: Environment) -> str:
    """The version that the package in an environment states; empty where nothing was made, or it states none."""
    sites = [made.site] if made.site else []
    if made.python is not None:
        sites += sorted(made.python.parents[1].glob("lib/python*/site-packages"))
    return next((version for site in sites if (version := _installed(made.wanted.package, site))), "")


def _kept(made: Environment) -> bool:
    """True for a complete environment of an earlier run; one that cannot import its package any more is removed."""
    folder = Path(made.folder)
    if not folder.is_dir():
        return False
    if not _fault(made):
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _fault(made: Environment) -> str:
    """Why the environment cannot import its package; empty where it can."""
    module = MODULES[made.wanted.package]
    command, environment = child_command(made.where, "timeit", python=made.python, site=made.site)
    at = command.index("-m")
    command[at:] = ["-c", f"import msgspec, numpy, {module}"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"status {done.returncode}")[-500:]


def _made(wanted: RuntimeVersion, where: str, folder: Path, python: Path | None) -> bool:
    """Make an environment. False where the package index has no wheel of this version for this Python."""
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError("pip is not installed in this Python", advice=f"Run: {sys.executable} -m ensurepip")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        scratch = Path(tempfile.mkdtemp(prefix=PART, dir=folder.parent))
    except OSError as error:
        raise UnavailableError(f"{folder.parent} cannot be written: {error}") from error
    try:
        part = scratch / folder.name
        if python is not None:
            _run([str(python), "-m", "venv", "--without-pip", str(part)], wanted)
        if not _install(wanted, part, emulated=python is None):
            return False
        built = Environment(wanted, where, python=_python_of(part) if python else None, site=None if python else part)
        if fault := _fault(built):
            raise UnavailableError(
                f"{wanted} was installed and cannot be imported: {fault}",
                advice="That says nothing about the bundle. Another Python may help, or a library is missing here.",
            )
        _put(part, folder)
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove the parts of commands that were killed."""
    for part in folder.glob(f"{PART}*"):
        with contextlib.suppress(OSError):  # another command may have removed it
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


def _put(part: Path, folder: Path) -> None:
    try:
        os.rename(part, folder)
    except OSError as error:
        if not folder.is_dir():  # else another command has made it meanwhile
            raise UnavailableError(f"{folder} cannot be written: {error}") from error


def _install(wanted: RuntimeVersion, part: Path, *, emulated: bool) -> bool:
    pip = [sys.executable, "-m", "pip"]
    target: list[str] = []
    if emulated:
        target = ["--target", str(part), "--python-version", EMULATED_PYTHON, "--implementation", "cp"]
        target += [f"--abi={abi}" for abi in (f"cp{EMULATED_PYTHON.replace('.', '')}", "abi3", "none")]
        target += [f"--platform={one}_aarch64" for one in PLATFORMS]  # pip infers no older ones from newer ones
    else:
        pip += ["--python", str(_python_of(part))]
    flags = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:", "--retries=2"]
    return _run([*pip, *flags, *target, *requirements(wanted, importlib.metadata.version("msgspec"))], wanted)


def _run(command: list[str], wanted: RuntimeVersion) -> bool:
    """Run a command that makes a part. False where the index has no such wheel."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"the environment of {wanted} cannot be made: {error}") from error
    if done.returncode == 0:
        return True
    text = done.stderr.strip()
    if any(sign in text for sign in _NO_NETWORK):
        raise UnavailableError(
            f"the package index cannot be reached: {text[-300:]}",
            advice="Check the network, and run the command again.",
        )
    if any(sign in text for sign in _NO_VERSION):
        return False
    raise UnavailableError(f"the environment of {wanted} cannot be made: {text[-500:]}")
