"""Trains the demo's models, and keeps them for later runs in the user's cache."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import tempfile
from pathlib import Path

import edgekit
from edgekit.demo.processes import Processes
from edgekit.errors import NotFoundError
from edgekit.versions import versions_of

KEPT = 8  # trainings; the oldest are removed
LIBRARIES = ("keras", "numpy", "scikit-learn", "tensorflow", "tensorflow-cpu")


class Training:
    """Makes the models and the data of one seed in the folder ``model``.

    The same seed gives the same files with the same script and libraries, so a later run takes them from `kept`.

    Args:
        folder: Folder of the demo.
        processes: Runs the training script.
        kept: Folder of earlier trainings; None trains each time.
    """

    def __init__(self, folder: Path, processes: Processes, kept: Path | None) -> None:
        self._model, self._processes, self._kept = folder / "model", processes, kept

    def make(self, seed: int) -> bool:
        """Put the models of `seed` in place. Returns True if an earlier run has trained them.

        Raises:
            NotFoundError: the training script is not there.
            CommandError: the training failed.
        """
        script = Path(edgekit.__file__).parent.parent / "examples" / "digits.py"
        if not script.exists():
            advice = "Run the demo from a clone of the project: `make demo`."
            raise NotFoundError(f"{script} does not exist", advice=advice)
        shutil.rmtree(self._model, ignore_errors=True)  # files of a skipped seed
        earlier = self._kept / _key(script, seed) if self._kept else None
        if earlier is not None and earlier.is_dir():
            shutil.copytree(earlier, self._model)
            return True
        self._processes.run(f"python {shlex.quote(str(script))} -o model --next --seed {seed}")
        if earlier is not None:
            self._keep(earlier)
        return False

    def _keep(self, folder: Path) -> None:
        """Copy the trained models to `folder`, whole or not at all, and remove the oldest trainings."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as name:
                shutil.copytree(self._model, Path(name) / "model")
                (Path(name) / "model").rename(folder)
            trainings = sorted(folder.parent.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)
            for old in trainings[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError:
            return  # a full disk, or another demo that keeps the same models: they are trained again next time


def _key(script: Path, seed: int) -> str:
    """Digest of everything that the trained weights depend on, except the processor."""
    versions = sorted(versions_of(LIBRARIES).items())
    return hashlib.sha256(script.read_bytes() + f"{seed} {versions}".encode()).hexdigest()[:32]
