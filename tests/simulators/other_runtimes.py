"""Environments for `edgekit recheck` that need no download: this Python's own runtime under another version number.

A fault can be built in: code that runs at the start of each process there.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.versions import version_of
from tests.simulators.small_models import onnx_bundle

PACKAGE, VERSION = "onnxruntime", "99.0.0"
OTHER = f"{PACKAGE}=={VERSION}"

CRASHING = """
import onnxruntime, os
onnxruntime.InferenceSession.run = lambda *args, **kwargs: os.abort()
"""
KILLED = """
import onnxruntime, os, signal
onnxruntime.InferenceSession.run = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
"""
WRONG = """
import onnxruntime
run = onnxruntime.InferenceSession.run
onnxruntime.InferenceSession.run = lambda *args, **kwargs: [value[..., ::-1].copy() for value in run(*args, **kwargs)]
"""
OTHER_NUMPY = """
import onnxruntime, sys
def run(*args, **kwargs):
    print("A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.6", file=sys.stderr)
    raise SystemError("returned a result with an exception set")
onnxruntime.InferenceSession.run = run
"""
WITHOUT_MEMORY = """
import onnxruntime
def run(*args, **kwargs):
    raise MemoryError("none is left")
onnxruntime.InferenceSession.run = run
"""


def environment(cache: Path, code: str = "", *, asked: str = VERSION) -> Path:
    """Make the environment in the cache folder `cache` (XDG_CACHE_HOME), and return its folder.

    Args:
        cache: The cache folder.
        code: Runs at the start of each process there.
        asked: The version as the command line had it; the package itself states VERSION.
    """
    kind = "py{}.{}-{}".format(*sys.version_info[:2], platform.machine().lower())
    folder = cache / "edgekit" / "recheck" / f"{PACKAGE}-{asked}-{kind}"
    packages = folder / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"
    packages.mkdir(parents=True)
    stated = packages / f"{PACKAGE}-{VERSION}.dist-info"
    stated.mkdir()
    (stated / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys._base_executable).parent}\n")  # type: ignore[attr-defined]
    (packages / "own.pth").write_text(sysconfig.get_path("purelib") + "\n")
    if code:
        (packages / "sitecustomize.py").write_text(code)
    return folder


def bundle(folder: Path, **options: object) -> Manifest:
    """Write a small bundle whose manifest says that it was made with the installed ONNX Runtime."""
    onnx_bundle(folder, **options)  # type: ignore[arg-type]
    path = folder / MANIFEST_NAME
    made = parse_manifest(path.read_bytes())
    made = msgspec.structs.replace(made, tools={PACKAGE: version_of(PACKAGE)})
    path.write_bytes(made.canonical_bytes())
    return made
