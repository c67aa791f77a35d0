import errno
import os
import resource
import stat

import pytest

from edgekit.errors import DiskError, ShortageError
from edgekit.storage import disk as disk_module
from edgekit.storage.disk import FolderDisk, MemoryDisk
from tests.simulators.disk import FaultyDisk, PowerCut

LEAVING = ["../a", "/etc/passwd", "a/../../b", "a//b", ".", "a/.", "a\0b", "a\\b"]


@pytest.fixture(params=[FolderDisk, MemoryDisk, FaultyDisk], ids=["folder", "memory", "faulty"])
def disk(request, tmp_path):
    return FolderDisk(tmp_path / "state") if request.param is FolderDisk else request.param()


def test_what_is_written_is_read(disk):
    """Folders are created as needed, and a second write replaces the first."""
    disk.write("a/b/c.json", b"one")
    disk.write("a/b/c.json", b"two!")
    assert disk.read("a/b/c.json") == b"two!"
    assert (disk.size("a/b/c.json"), disk.list("a/b"), disk.list("a")) == (4, ["c.json"], ["b"])
    assert disk.exists("a/b")
    assert disk.exists("a/b/c.json")


@pytest.mark.parametrize("name", LEAVING)
def test_a_name_that_leaves_the_root_is_refused(disk, name):
    """Every method refuses such a name before it does anything."""
    for call in (disk.read, disk.exists, disk.size, disk.list, disk.remove, disk.sync, disk.make_folder, disk.path):
        with pytest.raises(ValueError, match="plain name"):
            call(name)
    with pytest.raises(ValueError, match="plain name"):
        disk.write(name, b"")
    with pytest.raises(ValueError, match="plain name"):
        disk.rename("a", name)


def test_what_is_missing_is_a_file_not_found(disk):
    """Reading a missing file is a FileNotFoundError; listing or removing it is no error."""
    for call in (disk.read, disk.size, lambda n: disk.read_at(n, 0, 1), lambda n: disk.write_at(n, 0, b"x")):
        with pytest.raises(FileNotFoundError):
            call("nothing")
    assert disk.list("nothing") == []
    disk.remove("nothing")
    assert not disk.exists("nothing")


def test_blocks_are_written_in_place(disk):
    """A preallocated file has its size at once, and zeros where nothing was written."""
    disk.make_folder("f")
    disk.preallocate("f/blob", 10)
    disk.write_at("f/blob", 4, b"abc")
    disk.sync("f/blob")
    assert disk.read("f/blob") == b"\0\0\0\0abc\0\0\0"
    assert disk.read_at("f/blob", 5, 100) == b"bc\0\0\0"
    disk.preallocate("f/blob", 6)
    assert disk.read("f/blob") == b"\0\0\0\0ab"


def test_rename_replaces_and_remove_takes_whole_folders(disk):
    """Rename replaces a file, and remove deletes a whole folder, as on POSIX file systems."""
    disk.write("x/one", b"1")
    disk.write("y/two", b"2")
    disk.rename("x/one", "y/two")
    assert (disk.read("y/two"), disk.list("x")) == (b"1", [])
    disk.remove("y")
    assert not disk.exists("y/two")
    assert not disk.exists("y")
    assert disk.free_bytes() > 0


def test_a_symbolic_link_is_not_followed(tmp_path):
    """A symbolic link is refused, as a file and as a folder in the path."""
    disk = FolderDisk(tmp_path / "state")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "state" / "file").symlink_to(outside / "secret")
    (tmp_path / "state" / "folder").symlink_to(outside)
    with pytest.raises(DiskError):
        disk.read("file")
    assert not disk.exists("file")
    with pytest.raises(ValueError, match="symbolic link"):
        disk.read("folder/secret")
    with pytest.raises(ValueError, match="symbolic link"):
        disk.write("folder/secret", b"mine")
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    """The file gets the new content only when it is durable; a partial file is not listed and is removed."""
    disk = FolderDisk(tmp_path)
    disk.write("pointer", b"old")

    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk_module.os, "pwrite", full)
    with pytest.raises(DiskError, match="No space left") as caught:
        disk.write("pointer", b"new")
    assert "Free some space" in caught.value.advice
    assert disk.read("pointer") == b"old"
    assert os.listdir(tmp_path) == ["pointer"]


def test_only_this_user_may_read_the_folder(tmp_path):
    """The folder has mode 0700, so that only this user can read models and journal."""
    disk = FolderDisk(tmp_path / "state")
    disk.write("folder/file", b"x")
    modes = [stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) for name in ("", "folder", "folder/file")]
    assert modes == [0o700, 0o700, 0o600]


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path):
    """The message names the wrong part."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="state"):
        FolderDisk(tmp_path / "file" / "state")


def test_memory_has_a_capacity():
    """A disk in memory can be full."""
    disk = MemoryDisk(capacity=10)
    disk.write("a", b"12345678")
    with pytest.raises(DiskError, match="no space left"):
        disk.write("b", b"123")
    assert disk.free_bytes() == 2


def test_a_power_cut_loses_what_was_not_synced():
    """The simulator drops everything that was not synced, as a real disk may."""
    disk = FaultyDisk()
    disk.preallocate("blob", 4)
    disk.write_at("blob", 0, b"ab")
    disk.sync("blob")
    disk.write_at("blob", 2, b"cd")
    disk.write("kept", b"1")
    assert disk.read("blob") == b"abcd"
    survivor = disk.after_power_cut(cut_at=1)
    assert (survivor.read("blob"), survivor.read("kept")) == (b"ab\0\0", b"1")
    with pytest.raises(PowerCut):
        survivor.write("kept", b"2")
    assert survivor.after_power_cut().read("kept") == b"1"


def test_a_process_without_file_descriptors_does_not_blame_the_disk(tmp_path):
    """The bytes are right; another read, a moment later, gives them."""
    disk = FolderDisk(tmp_path)
    disk.write("name", b"right")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(tmp_path, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(ShortageError, match="at the moment: Too many open files"):
            disk.read("name")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert disk.read("name") == b"right"


def test_simulated_disks_hold_the_same_content_once():
    """Thousands of devices install the same files; later writes to one of them change no other."""
    contents: dict[bytes, bytes] = {}
    first, second = MemoryDisk(shared=contents), MemoryDisk(shared=contents)
    for disk in (first, second):
        disk.preallocate("in", 4)
        disk.write_at("in", 0, b"abcd")
        disk.rename("in", "model")
    assert first.files["model"] is second.files["model"]
    first.write_at("model", 0, b"X")
    assert (first.read("model"), second.read("model")) == (b"Xbcd", b"abcd")
