import pytest

from device_agents.deployment import S, State
from device_agents.journal import REPORTS_AT_ONCE, Journal
from device_agents.slots import Pointer, Slots, verify_file
from device_agents.telemetry import Window, flatten
from edgekit.disk import MemoryDisk
from edgekit.errors import DataError, DigestMismatchError, DiskError
from tests.machines.explorer import NEW
from tests.simulators.bundles import manifest_of
from tests.simulators.disk import FaultyDisk, full

MODEL = b"model" * 30_000


def staged(disk, slot="a", version="1.0.0"):
    manifest = manifest_of(version=version, model=MODEL)
    disk.write("in/model.onnx", MODEL)
    disk.write("in/golden.npz", b"golden")
    Slots(disk, "digits").stage(slot, manifest.canonical_bytes(), "in")
    return manifest


def test_what_the_journal_was_told_it_still_knows():
    """States and numbers, after a power cut at any time."""
    disk = FaultyDisk()
    journal = Journal(disk)
    assert journal.begin_session() == 1
    journal.save("digits", State(name=S.DOWNLOADING, deployment=NEW))
    journal.accept_assignment(5)
    journal.accept_assignment(3)
    journal.accept_command(2)
    journal.note_metadata({"root": 1, "timestamp": 9})
    again = Journal(disk.after_power_cut())
    assert again.models() == {"digits": State(name=S.DOWNLOADING, deployment=NEW)}
    assert (again.record.assignment, again.record.command) == (5, 2)
    assert again.record.metadata == {"root": 1, "timestamp": 9}
    assert again.begin_session() == 2


def test_report_numbers_rise_over_power_cuts_and_seldom_cost_a_write():
    """A number may be left out but never comes twice."""
    disk = FaultyDisk()
    journal = Journal(disk)
    numbers = [journal.next_report() for _ in range(10)]
    writes = disk.changes
    numbers += [journal.next_report() for _ in range(10)]
    assert disk.changes == writes
    numbers.append(Journal(disk.after_power_cut()).next_report())
    assert numbers == sorted(set(numbers))
    assert numbers[-1] <= REPORTS_AT_ONCE + 1


@pytest.mark.parametrize("data", [b"", b"{", b'{"session": "one"}', b'{"format": 99}'])
def test_a_damaged_journal_is_named_and_not_guessed(data):
    """Starting from nothing would forget what may not be forgotten."""
    disk = MemoryDisk()
    disk.write("journal/device.json", data)
    with pytest.raises(DataError, match=r"device\.json"):
        Journal(disk)


def test_a_full_disk_still_takes_one_more_state():
    """A failure can be remembered because space was kept for it; without any, it is an error."""
    disk = FaultyDisk()
    journal = Journal(disk)
    journal.begin_session()
    journal.save("digits", State())

    def full_until_space_is_made(change, method, name):
        if disk.exists("journal/reserve"):
            full(change, method, name)

    disk.fault = full_until_space_is_made
    journal.save("digits", State(name=S.CLEANING, deployment=NEW))
    assert Journal(disk.after_power_cut()).models()["digits"].name is S.CLEANING
    disk.fault = full
    with pytest.raises(DiskError):
        journal.save("digits", State())


def test_a_disk_that_takes_nothing_gets_a_session_and_no_report_number():
    """The agent starts and its models answer; a number that was not noted is never used."""
    disk = FaultyDisk()
    Journal(disk).begin_session()
    disk.remove("journal/reserve")
    disk.fault = full
    journal = Journal(disk)
    assert journal.begin_session() == 2
    for _ in range(2):
        with pytest.raises(DiskError):
            journal.next_report()
    disk.fault = None
    assert journal.next_report() == 1
    assert Journal(disk.after_power_cut()).begin_session() == 3


def test_a_staged_slot_holds_a_whole_bundle():
    """Files are moved, what lay there before is gone, and the manifest comes last."""
    disk = FaultyDisk()
    disk.write("models/digits/a/leftover.bin", b"old")
    manifest = staged(disk)
    slots = Slots(disk, "digits")
    assert disk.list("models/digits/a") == ["golden.npz", "manifest.json", "model.onnx"]
    assert disk.list("in") == []
    assert slots.manifest("a", manifest.digest) == manifest
    verify_file(disk, "models/digits/a/model.onnx", manifest.file("model"))


def test_staging_can_be_taken_up_half_way():
    """Some files are moved already; a damaged one is found."""
    disk = MemoryDisk()
    manifest = staged(disk)
    disk.remove("models/digits/a/manifest.json")
    Slots(disk, "digits").stage("a", manifest.canonical_bytes(), "in")
    disk.write("models/digits/a/model.onnx", b"torn")
    with pytest.raises(DigestMismatchError, match=r"model\.onnx"):
        Slots(disk, "digits").stage("a", manifest.canonical_bytes(), "in")
    disk.remove("models/digits/a/model.onnx")
    with pytest.raises(DiskError, match=r"model\.onnx"):
        Slots(disk, "digits").stage("a", manifest.canonical_bytes(), "in")


def test_a_slot_that_holds_something_else_is_told_from_one_that_holds_nothing():
    """Another bundle is a digest mismatch; a part of one is a disk error."""
    disk = MemoryDisk()
    manifest = staged(disk)
    slots = Slots(disk, "digits")
    with pytest.raises(DigestMismatchError):
        slots.manifest("a", NEW.digest)
    with pytest.raises(DiskError, match="holds no bundle"):
        slots.manifest("b", manifest.digest)
    disk.remove("models/digits/a/golden.npz")
    with pytest.raises(DiskError, match="missing"):
        slots.manifest("a", manifest.digest)


def test_the_pointer_is_one_file_and_guards_what_it_names():
    """Active and known-good change together; a slot in use is never cleared."""
    disk = MemoryDisk()
    staged(disk)
    slots = Slots(disk, "digits")
    assert slots.pointer() == Pointer()
    slots.point("b", "a")
    assert slots.pointer() == Pointer("b", "a")
    for slot in "ab":
        with pytest.raises(ValueError, match="in use"):
            slots.clear(slot)
    slots.point("", "")
    assert not disk.exists("models/digits/active")
    slots.clear("a")
    assert disk.list("models/digits") == []


@pytest.mark.parametrize("name", ["../x", "", "Digits", "a/b"])
def test_a_model_name_that_could_be_a_path_is_refused(name):
    """Names come from signed documents, and are checked all the same."""
    with pytest.raises(ValueError, match="no model name"):
        Slots(MemoryDisk(), name)


def test_telemetry_counts_since_the_last_one_that_was_sent():
    """What could not be sent is in the next; a counter that began anew is not negative."""
    window = Window("d1", now=0.0)
    totals = flatten({"digits": {"local": 5}})
    assert window.peek(totals, now=60.0, at=1.0).counters == {"digits.local": 5.0}
    assert window.peek(totals, now=70.0, at=1.0).seconds == 70.0
    window.sent(totals, now=70.0)
    later = window.peek(flatten({"digits": {"local": 7}}), now=130.0, at=1.0)
    assert (later.counters, later.seconds) == ({"digits.local": 2.0}, 60.0)
    assert window.peek(flatten({"digits": {"local": 1}}), now=130.0, at=1.0).counters == {"digits.local": 1.0}
