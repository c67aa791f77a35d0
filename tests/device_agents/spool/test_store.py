"""The folder of the spool: capacity, damage, power cuts and a full disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from device_agents.spool.store import FOLDER, FREE_BYTES, NEW, Spool, Spooled
from edgekit.errors import DataError, DiskError, SpaceError
from edgekit.mqtt.sample_reasons import SampleReason
from tests.simulators.disk import FaultyDisk, PowerCut, full


def content(size: int = 100) -> Spooled:
    return Spooled("m", "d" * 64, 1.0, bytes(size))


def put(spool: Spool, reason: SampleReason = SampleReason.UNSURE, size: int = 100) -> str:
    sample = spool.next_id(reason, f"{len(spool):016x}")
    return sample if spool.put(sample, content(size)) else ""


def test_what_was_put_is_there_after_a_restart() -> None:
    """In the same order, until it is removed."""
    disk = FaultyDisk()
    spool = Spool(disk, 10_000)
    first, second = put(spool), put(spool, SampleReason.REFUTED)
    again = Spool(disk.after_power_cut(), 10_000)
    assert len(again) == 2
    assert again.next().id == second
    assert again.read(first) == content()
    again.remove(second)
    assert again.next().id == first


def test_a_full_spool_gives_up_the_least_valuable_and_counts() -> None:
    """Also the new one, where all others are worth more."""
    spool = Spool(FaultyDisk(), 500)
    low = put(spool, SampleReason.RANDOM)
    put(spool, SampleReason.REFUTED)
    assert put(spool, SampleReason.UNSURE)
    assert len(spool) == 2
    assert spool.evicted == 1
    with pytest.raises(DataError, match="no longer"):
        spool.read(low)
    assert not put(spool, SampleReason.RANDOM)
    assert spool.evicted == 2
    assert spool.used_bytes <= 500


def test_damaged_and_foreign_files_are_told() -> None:
    """A file of another name is no sample; one with other bytes, or of another format, is an error that names it."""
    disk = FaultyDisk()
    sample = put(Spool(disk, 10_000))
    disk.write(f"{FOLDER}/notes.txt", b"x")
    spool = Spool(disk, 10_000)
    assert len(spool) == 1
    for data in (b"\x00", b"\x84", b""):
        disk.write(f"{FOLDER}/{sample}", data)
        with pytest.raises(DataError, match=sample):
            spool.read(sample)


def test_space_for_updates_stays_free() -> None:
    """A nearly full disk keeps no samples, and the error says how much is free."""
    disk = FaultyDisk(capacity=FREE_BYTES + 100)
    with pytest.raises(SpaceError, match="stay free"):
        put(Spool(disk, 10_000))
    assert disk.files == {}


def test_a_failing_disk_loses_no_stored_sample() -> None:
    """The write fails, and what was there can be read and sent."""
    disk = FaultyDisk()
    spool = Spool(disk, 10_000)
    sample = put(spool)
    disk.fault = full
    with pytest.raises(DiskError):
        put(spool)
    assert len(spool) == 1
    assert spool.read(sample) == content()


def cuts() -> Iterator[tuple[FaultyDisk, list[str]]]:
    """A device whose power fails before each change in turn; its disk afterwards, and the samples that were stored."""
    for cut_at in range(1, 100):
        disk, stored = FaultyDisk(cut_at=cut_at), []
        try:
            spool = Spool(disk, 500)
            for reason in (SampleReason.RANDOM, SampleReason.UNSURE, SampleReason.UNSURE, SampleReason.REFUTED):
                if sample := put(spool, reason):
                    stored.append(sample)
            spool.remove(stored[-1])
        except PowerCut:
            yield disk.after_power_cut(), stored
        else:
            return


def test_a_power_cut_at_any_change_leaves_whole_samples_within_the_capacity() -> None:
    """The newest stored sample is there unless it was being removed; a half-written one leaves no file for long."""
    n = 0
    for disk, stored in cuts():
        n += 1
        spool = Spool(disk, 500)
        assert spool.used_bytes <= 500
        assert not disk.exists(NEW)
        names = disk.list(FOLDER)
        assert len(names) == len(spool)
        for name in names:
            assert spool.read(name) == content()
        if stored:  # the fourth is removed at the end, and never takes the place of the third
            assert stored[min(len(stored), 3) - 1] in names
        assert put(spool, SampleReason.REFUTED)
    assert n > 8
