"""`edgekit registry export`: which devices it chooses, what it writes, and when it writes nothing."""

from __future__ import annotations

import os
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest

from edgekit.errors import DataError, NotFoundError
from edgekit.state.rollout.assignments import assign
from edgekit.trust.assignment import Assignment, Entry, sign_assignment
from edgekit.trust.keys import key_path, load_signer
from edgekit.update_file import UpdateFile, find_update_file
from tests.simulators.control import write_bundle
from tests.simulators.shell import TARGET, Shell, enroll


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    write_bundle(tmp_path / "b", "digits", "1.0.0")
    shell("edgekit registry publish b")
    enroll(shell, "pi-1", "pi-2", "pi-3")
    return shell


def order(shell: Shell, *names: str, sign: bool = True) -> None:
    """Assign digits 1.0.0, and sign as a controller does."""
    (row,) = shell.json("edgekit registry list --json")
    fields = {name: row[name] for name in ("path", "length", "sha256", "name", "target", "version", "release")}
    entry, expires = Entry(**fields), time.time() + 86_400.0
    director = load_signer(key_path(shell.folder / "keys", "director"))
    state = shell.state()
    for name in names:
        with state.assignments._writing() as connection:
            assign(connection, "f1", name, "digits", entry)
        if sign:
            version = state.assignments.get(name).version
            document = sign_assignment(Assignment(name, "f1", version, expires, {"digits": entry}), director)
            state.assignments.signed(name, version, document, expires)
    state.close()


def test_a_file_has_what_its_devices_need(shell: Shell, tmp_path: Path) -> None:
    """One device or a filter; assignments, metadata and every blob once, without compression."""
    order(shell, "pi-1", "pi-2")
    out, err = shell(f"edgekit registry export --for 'target == {TARGET}' -o all.edgekit")
    assert "all.edgekit has 1 bundle(s) for 2 device(s)" in out
    assert "run there: edgekit-agent import all.edgekit" in out
    assert "nothing is assigned to pi-3" in err
    with zipfile.ZipFile("all.edgekit") as archive:
        names = archive.namelist()
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}
    assert len(set(names)) == len(names)
    assert {name for name in names if name.startswith("desired/")} == {"desired/pi-1.json", "desired/pi-2.json"}
    assert {name.split(".", 1)[-1] for name in names if name.startswith("metadata/")} == {
        *("json", "snapshot.json", "targets.json", "publisher-digits.json")
    }
    found = shell.json("edgekit registry export --for pi-1 -o one.edgekit --json")
    assert (found["devices"], found["bundles"]) == (["pi-1"], [f"digits 1.0.0 {TARGET}"])
    assert time.time() < found["expires"] < time.time() + 86_401
    assert find_update_file(tmp_path, "pi-2") == tmp_path / "all.edgekit"
    with pytest.raises(NotFoundError, match="pi-9"):
        find_update_file(tmp_path, "pi-9")
    (tmp_path / "stick").mkdir()
    cut = tmp_path / "stick" / "cut.edgekit"
    cut.write_bytes((tmp_path / "all.edgekit").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.edgekit is no update file"):
        find_update_file(tmp_path / "stick", "pi-2")  # a copy that was cut short is not "none for this device"
    shutil.copy("all.edgekit", tmp_path / "stick")
    assert find_update_file(tmp_path / "stick", "pi-2") == tmp_path / "stick" / "all.edgekit"


@pytest.mark.parametrize(
    ("who", "status", "says"),
    [
        ("pi-3", 1, "nothing is assigned to pi-3"),
        ("'label.site == nowhere'", 1, "no device of fleet 'f1' matches"),
        ("pi-2", 1, "are not signed"),
        ("'target = x'", 2, "cannot be read"),
        ("nobody", 1, "no device 'nobody' is enrolled"),
    ],
)
def test_nothing_is_written_for_nobody(shell: Shell, tmp_path: Path, who: str, status: int, says: str) -> None:
    """The reason and what to do; an older file stays."""
    order(shell, "pi-1")
    order(shell, "pi-2", sign=False)
    (tmp_path / "x.edgekit").write_text("older")
    _, err = shell(f"edgekit registry export --for {who} -o x.edgekit", expect=status)
    assert says in err
    assert (tmp_path / "x.edgekit").read_text() == "older"
    assert not list(tmp_path.glob("*.part"))


def test_a_device_or_pipe_is_not_replaced(shell: Shell, tmp_path: Path) -> None:
    """As root, `-o /dev/null` would put a file in its place."""
    order(shell, "pi-1")
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in shell("edgekit registry export --for pi-1 -o pipe", expect=1)[1]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("fault", ["text", "compressed", "foreign", "newer", "cut", "no-index", "longer"])
def test_other_files_are_no_update_files(tmp_path: Path, fault: str) -> None:
    """Whatever lies on the stick; nothing is unpacked."""
    path = tmp_path / "x.edgekit"
    index = b'{"format":%d,"fleet":"f","created":1,"devices":[]}' % (9 if fault == "newer" else 1)
    how = zipfile.ZIP_DEFLATED if fault == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as archive:
        if fault != "no-index":
            archive.writestr("index.json", index)
        if fault == "foreign":
            archive.writestr("../../etc/passwd", b"x")
        archive.writestr("blobs/" + "0" * 64, b"x")
    if fault == "text":
        path.write_text("hello")
    if fault == "longer":  # its entry says that it has 2 GiB
        data = bytearray(path.read_bytes())
        at = data.rindex(b"PK\x01\x02") + 20
        data[at : at + 8] = struct.pack("<2L", 2**31, 2**31)
        path.write_bytes(data)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises((DataError, NotFoundError), match=r"x\.edgekit"):
        UpdateFile(path)


def test_a_device_whose_order_only_removes_models_gets_a_file(shell: Shell) -> None:
    """Without a bundle in it."""
    order(shell, "pi-1")
    state = shell.state()
    expires = time.time() + 86_400.0
    with state.assignments._writing() as connection:
        assign(connection, "f1", "pi-1", "digits", None, uninstall=True)
    version = state.assignments.get("pi-1").version
    director = load_signer(key_path(shell.folder / "keys", "director"))
    removal = Assignment("pi-1", "f1", version, expires, {}, uninstall=("digits",))
    state.assignments.signed("pi-1", version, sign_assignment(removal, director), expires)
    state.close()
    out, _ = shell("edgekit registry export --for pi-1 -o pi-1.edgekit")
    assert "pi-1.edgekit has 0 bundle(s) for 1 device(s)" in out
    with zipfile.ZipFile("pi-1.edgekit") as archive:
        assert "desired/pi-1.json" in archive.namelist()
        assert not [name for name in archive.namelist() if name.startswith("blobs/")]
