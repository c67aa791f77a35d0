"""Separate Python environments for tools whose dependencies conflict with edgekit's.

`python -m benchmarks.peers [NAME ...]` makes them under ``.bench/``. A benchmark prints the name of each peer that it
skips because its environment cannot be made.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".bench"
ONNXRUNTIME = ("onnxruntime==1.23.2; python_version < '3.11'", "onnxruntime==1.31.1; python_version >= '3.11'")
PEERS = {
    "tritonclient": ("tritonclient[http,grpc]==2.73.0",),  # the extra `all` installs an old version
    "fastapi": ("fastapi==0.165.0", "httptools==0.9.0", *ONNXRUNTIME, "uvicorn==0.54.0"),
    "mlserver": ("mlserver==1.7.1", *ONNXRUNTIME),
    "kserve": ("kserve==0.21.0", *ONNXRUNTIME),
    "litserve": ("litserve==0.2.19", *ONNXRUNTIME),
    "bsdiff4": ("bsdiff4==1.3.2",),
    "schemathesis": ("schemathesis==4.32.5",),  # tests the API of the controller
    "onnx2tf": ("onnx2tf==1.29.24", "backports-strenum<1.3"),  # it pins its whole environment, TensorFlow 2.19 included
    "onnxsim": ("onnxsim==0.8.1", *ONNXRUNTIME),
    "torch-pruning": ("torch==2.13.0", "torch-pruning==1.6.1", "onnx==1.23.2"),
    "kubernetes-validate": ("kubernetes-validate==1.37.0",),
    "bentoml": ("bentoml==1.4.39", *ONNXRUNTIME),
}
INSTALL_SECONDS = 900
_MARKER = ".made"  # holds the requirements of a complete environment


def python_of(peer: str) -> Path | None:
    """The interpreter of a peer's environment; None if the environment does not exist or has other versions."""
    folder = FOLDER / peer
    requirements = "\n".join(PEERS[peer])
    marker = folder / _MARKER
    return folder / "bin" / "python" if marker.exists() and marker.read_text() == requirements else None


def make(peer: str) -> str:
    """Make a peer's environment if needed. Returns the reason of a failure, or an empty string."""
    if python_of(peer) is not None:
        return ""
    folder = FOLDER / peer
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *PEERS[peer]], check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        return (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    (folder / _MARKER).write_text("\n".join(PEERS[peer]))
    return ""


def main() -> int:
    """Make the named environments, or all of them."""
    chosen = sys.argv[1:] or list(PEERS)
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        print(f"unknown peer: {', '.join(unknown)}; known: {', '.join(PEERS)}", file=sys.stderr)
        return 2
    reasons = {name: make(name) for name in chosen}
    for name, reason in reasons.items():
        print(f"{name}: {reason or 'ready'}")
    return 1 if any(reasons.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
