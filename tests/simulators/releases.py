"""Files that earlier releases wrote (`tests/assets/release-*`), and copies of them for tests that change files."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"


class Release:
    """The files of one release.

    Attributes:
        folder: Folder of the files. Tests must not change it; they change copies.
        made_at: Wall clock in seconds when the files were copied. All signatures are valid at that time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made_at = float(json.loads((folder / "made.json").read_text())["made_at"])

    def control(self, out: Path) -> Path:
        """A copy of the control side's folder."""
        return self._copy("control", out / "control")

    def device(self, out: Path, moment: str) -> Path:
        """A copy of the device's folder, with its state at a moment: ``downloading``, ``probation``, ``committed``."""
        folder = self._copy("devices/pi-1", out / "pi-1")
        with tarfile.open(folder / f"state-{moment}.tar.gz") as archive:
            archive.extractall(folder, filter="fully_trusted")
        for path in folder.glob("state-*.tar.gz"):
            path.unlink()
        return folder

    def keys(self, out: Path, name: str) -> Path:
        """A copy of a folder with keys."""
        return self._copy(name, out / name)

    def _copy(self, name: str, out: Path) -> Path:
        shutil.copytree(self.folder / name, out)
        for path in out.rglob("*.key"):
            path.chmod(0o600)  # git does not store this mode, and edgekit requires it
        return out


RELEASES = [Release(folder) for folder in sorted(ASSETS.glob("release-*"))]
NAMES = [release.folder.name for release in RELEASES]


def without_new_keys(value, old):
    """`value` without the keys that `old` does not have; a newer release adds keys freely."""
    if isinstance(old, dict):
        return {key: without_new_keys(value[key], one) for key, one in old.items()}
    if isinstance(old, list):
        return [without_new_keys(one, other) for one, other in zip(value, old, strict=True)]
    return value
