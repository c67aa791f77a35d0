"""The stored result of a comparison: read again, or begun anew where the file says nothing that can be true."""

import pytest

from device_agents.shadow import ShadowCounts
from device_agents.storage.shadow_counts import FILE_NAME, StoredCounts
from edgekit.storage.disk import FolderDisk
from tests.simulators.disk import FaultyDisk

COUNTS = ShadowCounts(compared=40, differed=2, failed=1, dropped=7, seconds=12.5, ended="")


async def test_a_result_is_read_again(tmp_path):
    """As it was stored."""
    stored = StoredCounts(FolderDisk(tmp_path), "incoming/digits")
    fresh = stored.read()
    assert fresh == ShadowCounts(run=fresh.run)
    assert fresh.run != stored.read().run
    await stored.note(COUNTS)
    assert stored.read() == COUNTS


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"{", b'{"compared": -1}', b'{"seconds": -5}', b'{"seconds": NaN}', b'{"ended": 3}'],
)
def test_a_damaged_file_begins_the_comparison_anew(tmp_path, data):
    """Whatever is in it."""
    disk = FolderDisk(tmp_path)
    disk.write(f"incoming/digits/{FILE_NAME}", data)
    fresh = StoredCounts(disk, "incoming/digits").read()
    assert fresh == ShadowCounts(run=fresh.run)


async def test_a_full_disk_stops_no_comparison():
    """The result is lost at the next restart, and nothing else."""
    disk = FaultyDisk()
    stored = StoredCounts(disk, "incoming/digits")
    disk.capacity = 0
    await stored.note(COUNTS)
    assert stored.read().compared == 0
