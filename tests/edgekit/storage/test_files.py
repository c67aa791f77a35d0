"""Files that are written whole."""

import os
import resource
import signal

import pytest

from edgekit.storage.files import replace_file


def test_a_file_keeps_its_content_until_the_new_one_is_whole(tmp_path):
    """Also where the new one does not fit: nothing is lost, and no part of it stays. A link stays a link."""
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    replace_file(path, b"first")
    link.symlink_to(path)
    replace_file(link, b"second")
    assert link.is_symlink()
    assert path.read_bytes() == b"second"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            replace_file(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"second"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.json", "link.json"]


def test_a_device_is_written_and_not_replaced(tmp_path):
    """`-o /dev/stdout` as root must not put a file in the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, b"text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert not pipe.is_file()
