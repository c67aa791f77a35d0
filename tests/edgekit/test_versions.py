"""Versions of installed packages, read from the names of their folders."""

import importlib.metadata
import subprocess
import sys
import zipfile

import pytest

from edgekit.versions import runtime_version, version_of


def test_versions_are_those_that_the_standard_library_finds():
    """For every distribution of this environment, however its name is written; None for one that is not there."""
    names = {found.metadata["Name"] for found in importlib.metadata.distributions()} - {"edgekit"}
    assert len(names) > 50
    for name in names:
        assert version_of(name) == importlib.metadata.version(name), name
        assert version_of(name.upper().replace("-", "_")) == importlib.metadata.version(name), name
    assert version_of("no-such-package") is None
    assert runtime_version("litert") == f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
    assert runtime_version("no-such-runtime") == ""


def test_a_package_that_comes_later_is_found(tmp_path, monkeypatch):
    """A folder that has changed is read again, and the first folder of the path wins."""
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("late") is None
    (tmp_path / "late-1.5.dist-info").mkdir()
    assert version_of("late") == "1.5"
    (tmp_path / "numpy-0.1.dist-info").mkdir()
    assert version_of("numpy") == "0.1"


def test_a_package_whose_folder_names_no_version_is_asked_for_its_metadata(tmp_path, monkeypatch):
    """As Debian's packages have it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "old_one.egg-info").write_text("Metadata-Version: 1.1\nName: old-one\nVersion: 2.7\n")
    assert version_of("old-one") == "2.7"


def test_a_package_in_an_archive_is_found(tmp_path, monkeypatch):
    """The path may have archives, which the standard library reads."""
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("packed-3.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: packed\nVersion: 3.1\n")
    monkeypatch.syspath_prepend(tmp_path / "packed.zip")
    assert version_of("packed") == "3.1"
    assert version_of("no-such-package") is None


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_the_version_of_a_runtime_needs_no_slow_import(runtime):
    """A device asks for it before its first answer."""
    code = f"import sys; from edgekit.versions import runtime_version as v; print(v({runtime!r})); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "email" not in found.split()
    assert "importlib.metadata" not in found.split()
    assert found.split()[1][0].isdigit()
