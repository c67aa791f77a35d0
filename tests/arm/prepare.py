"""Makes the emulated ARM machine of this source tree in ``.arm/``: ``make arm``.

The wheels and their hashes are those of ``constraints/agent.txt``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from converters.cost.emulated import folder
from converters.cost.emulated.cores import CORES
from converters.cost.emulated.folder import PYTHON, arm_folder
from converters.cost.emulated.prepare import is_made as is_made_from
from converters.cost.emulated.prepare import own_recipe, prepare
from edgekit.errors import EdgekitError

__all__ = ["CORES", "interpreter", "is_made", "main"]

ROOT = Path(__file__).resolve().parents[2]


def interpreter(core: str) -> Path:
    """Path of the emulated Python of a core. Child processes started by its `sys.executable` are emulated too."""
    return folder.interpreter(arm_folder(), core)


def _recipe() -> str:
    return own_recipe() + Path(__file__).read_text() + (ROOT / "constraints" / "agent.txt").read_text()


def is_made() -> bool:
    """True if the folder is complete and made from the current recipe."""
    return is_made_from(arm_folder(), _recipe())


def main() -> int:
    """Make the folder unless it is complete and current."""
    try:
        prepare(arm_folder(), _recipe(), _install_wheels, f"{arm_folder() / 'site'}:{ROOT}")
    except EdgekitError as error:
        print(f"{error}\n{error.advice}", file=sys.stderr)
        return 1
    return 0


def _install_wheels(home: Path) -> None:
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(home / "site")]
    install += ["--python-version", PYTHON, "--python-platform", "aarch64-manylinux_2_36"]
    pinned = ["--only-binary", ":all:", "--require-hashes", "--requirement", "constraints/agent.txt"]
    subprocess.run([*install, *pinned], check=True, cwd=ROOT)
    images = home / "images.txt"  # edgekit[images], for bundles that decode images
    images.write_text(_pinned("pillow"))
    pinned[-1] = str(images)
    subprocess.run([*install, *pinned], check=True, cwd=ROOT)
    # Installs only edgekit's metadata: its code is on PYTHONPATH.
    subprocess.run([*install, "--no-build-isolation", "--editable", "."], check=True, cwd=ROOT)


def _pinned(package: str) -> str:
    """The entries of a package in ``constraints/all.txt``: one version for each Python, with hashes."""
    entries = re.split(r"^(?=\S)", (ROOT / "constraints" / "all.txt").read_text(), flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.startswith(f"{package}=="))


if __name__ == "__main__":
    sys.exit(main())
