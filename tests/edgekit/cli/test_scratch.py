"""Temporary folders of commands that run for long, and those that killed processes have left."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgekit.cli.common.scratch import LOCK_NAME, scratch_folder

PREFIX = "edgekit-scratch-test-"
HOLD = f"""
import time
from edgekit.cli.common.scratch import scratch_folder
with scratch_folder({PREFIX!r}) as folder:
    (folder / "bundle").write_text("large")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one(temporary: Path) -> None:
    """Each kill left the bundles of the cloud tier on the disk. Folders in use, and others, stay."""
    (temporary / "other").mkdir()
    (temporary / f"{PREFIX}of-an-earlier-release").mkdir()
    held = [subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        folders = [Path(one.stdout.readline().strip()) for one in held if one.stdout is not None]
        assert all((folder / LOCK_NAME).exists() for folder in folders)
        held[0].kill()
        held[0].wait()
        with scratch_folder(PREFIX) as own:
            assert [folder.exists() for folder in (*folders, own)] == [False, True, True]
        assert not own.exists()
    finally:
        for one in held:
            one.kill()
            one.wait()
    assert (folders[1] / "bundle").read_text() == "large"
    assert len(list(temporary.iterdir())) == 3
