"""The journal and the slots on a disk with power cuts and damage."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from device_agents.control.telemetry import Window, flatten
from device_agents.deployment import UpdateRecord, UpdateState
from device_agents.storage.journal import REPORTS_AT_ONCE, Journal
from device_agents.storage.slots import Pointer, Slots, verify_file
from edgekit.errors import DataError, DigestMismatchError, DiskError, UnavailableError
from edgekit.storage.disk import MemoryDisk
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
    journal.save("digits", UpdateRecord(name=UpdateState.DOWNLOADING, deployment=NEW))
    journal.accept_assignment(5)
    journal.accept_assignment(3)
    journal.accept_command(2)
    journal.note_metadata({"root": 1, "timestamp": 9})
    again = Journal(disk.after_power_cut())
    assert again.models() == {"digits": UpdateRecord(name=UpdateState.DOWNLOADING, deployment=NEW)}
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


DAMAGE = {
    "emptied": lambda data: b"",
    "cut-off": lambda data: data[:20],
    "one-bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "another-number": lambda data: data.replace(b'"assignment":5', b'"assignment":6'),
    "not-text": lambda data: b"\xff" * len(data),
}


def written(disk):
    journal = Journal(disk)
    journal.begin_session()
    journal.accept_assignment(5)
    journal.accept_command(2)
    journal.save(
        "digits", UpdateRecord(name=UpdateState.DOWNLOADING, deployment=msgspec.structs.replace(NEW, assignment=5))
    )
    return journal


@pytest.mark.parametrize("fault", DAMAGE)
@pytest.mark.parametrize("name", ["journal/device.json", "journal/models/digits.json"])
def test_a_damaged_record_is_told_and_its_copy_serves(name, fault):
    """Damage of the file or of its copy loses nothing, and the next write repairs both."""
    for place in (name, name.replace("journal/", "journal/copies/")):
        disk = MemoryDisk()
        before = written(disk)
        disk.write(place, DAMAGE[fault](disk.read(place)))
        journal = Journal(disk)
        assert (journal.record, journal.models()) == (before.record, before.models())
        assert bool(journal.damage) == (place == name)
        assert all(name in damage for damage in journal.damage)
        journal.begin_session()
        journal.save("digits", journal.models()["digits"])
        again = Journal(disk)
        again.models()
        assert again.damage == []


def test_a_record_that_is_gone_is_taken_from_its_copy():
    """A file system check may remove a file altogether."""
    disk = MemoryDisk()
    before = written(disk)
    disk.remove("journal/device.json")
    disk.remove("journal/models/digits.json")
    assert (Journal(disk).record, Journal(disk).models()) == (before.record, before.models())


def test_without_any_copy_the_device_starts_again_above_what_the_rest_still_says():
    """Assignments that came before are still refused; the other numbers start again until they are learned."""
    disk = MemoryDisk()
    written(disk)
    disk.write("journal/device.json", b"{")
    disk.write("journal/copies/device.json", b"{")
    journal = Journal(disk)
    assert len(journal.damage) == 2
    assert (journal.record.session, journal.record.assignment) == (0, 5)
    assert journal.next_report() == 1
    assert journal.continue_above(report=7000, session=9, command=3)
    assert not journal.continue_above(report=6999, session=8, assignment=4, command=2)
    assert journal.next_report() == 7001
    assert (Journal(disk).begin_session(), Journal(disk).record.assignment) == (10, 5)
    assert Journal(disk).next_report() > 7001


def test_a_model_without_any_copy_is_what_its_pointer_and_a_whole_slot_say():
    """The release counter is not on the disk; a slot that is not whole is not taken."""
    disk = MemoryDisk()
    manifest = staged(disk)
    Slots(disk, "digits").point("a", "a")
    disk.write("journal/models/digits.json", b"")
    state = Journal(disk).models()["digits"]
    assert (state.name, state.active.slot, state.active.digest) == (UpdateState.IDLE, "a", manifest.digest)
    assert state.known_good == state.active
    assert state.highest == manifest.version  # a lower version is still a downgrade
    disk.write("models/digits/a/model.onnx", bytes(len(MODEL)))
    assert Journal(disk).models()["digits"].known_good is None
    Slots(disk, "digits").point("b", "a")
    assert Journal(disk).models()["digits"].name is UpdateState.ROLLING_BACK


def test_a_journal_of_another_version_is_refused_and_not_taken_for_damage():
    """The journal of a newer agent must not be overwritten."""
    disk = MemoryDisk()
    disk.write("journal/device.json", b'{"format": 99}')
    with pytest.raises(DataError, match="format 99"):
        Journal(disk)


def test_a_journal_without_digests_is_read():
    """A journal as an older agent wrote it."""
    disk = MemoryDisk()
    disk.write("journal/device.json", b'{"session": 7, "assignment": 3, "format": 1}')
    assert (Journal(disk).record.session, Journal(disk).record.assignment) == (7, 3)


def test_threads_that_write_at_once_take_turns():
    """A report number and an assignment are noted from different threads."""
    disk = MemoryDisk()
    journal = Journal(disk)
    with ThreadPoolExecutor(8) as threads:
        for number in range(200):
            threads.submit(journal.accept_assignment, number)
            threads.submit(journal.accept_command, number)
    assert (Journal(disk).record.assignment, Journal(disk).record.command) == (199, 199)


@pytest.mark.parametrize(
    ("in_order", "boot", "ended"), [(True, "b1", "order"), (False, "b1", "crash"), (False, "b2", "cut")]
)
def test_a_process_that_died_is_told_from_an_orderly_end_and_from_a_machine_that_started_anew(in_order, boot, ended):
    """By what was noted at the end, and by the name of the machine's boot."""
    disk = MemoryDisk()
    journal = Journal(disk)
    journal.begin_session("b1")
    if in_order:
        journal.end_session()
    again = Journal(disk)
    again.begin_session(boot)
    assert again.ended == ended


def test_a_full_disk_still_takes_one_more_state():
    """A failure can be remembered because space was kept for it; without any, it is an error."""
    disk = FaultyDisk()
    journal = Journal(disk)
    journal.begin_session()
    journal.save("digits", UpdateRecord())

    def full_until_space_is_made(change, method, name):
        if disk.exists("journal/reserve"):
            full(change, method, name)

    disk.fault = full_until_space_is_made
    journal.save("digits", UpdateRecord(name=UpdateState.CLEANING, deployment=NEW))
    assert Journal(disk.after_power_cut()).models()["digits"].name is UpdateState.CLEANING
    disk.fault = full
    with pytest.raises(DiskError):
        journal.save("digits", UpdateRecord())


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
    """Some files are moved already; one that a power cut damaged or lost goes, and is fetched again."""
    disk = MemoryDisk()
    manifest = staged(disk)
    disk.remove("models/digits/a/manifest.json")
    Slots(disk, "digits").stage("a", manifest.canonical_bytes(), "in")
    disk.write("models/digits/a/model.onnx", b"torn")
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"model\.onnx was lost"):
            Slots(disk, "digits").stage("a", manifest.canonical_bytes(), "in")
        assert not disk.exists("models/digits/a/model.onnx")


def test_a_damaged_pointer_is_replaced():
    """The pointer has nothing that the journal does not have."""
    disk = MemoryDisk()
    disk.write("models/digits/active", b"\xff{")
    with pytest.raises(DataError, match="cannot be read"):
        Slots(disk, "digits").pointer()
    Slots(disk, "digits").point("a", "b")
    assert Slots(disk, "digits").pointer() == Pointer("a", "b")


def test_a_slot_that_holds_something_else_is_told_from_one_that_holds_nothing():
    """Another bundle is a digest mismatch; a part of one is a disk error."""
    disk = MemoryDisk()
    manifest = staged(disk)
    slots = Slots(disk, "digits")
    with pytest.raises(DigestMismatchError):
        slots.manifest("a", NEW.digest)
    with pytest.raises(DiskError, match="has no bundle"):
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
    with pytest.raises(ValueError, match="not a model name"):
        Slots(MemoryDisk(), name)


def test_telemetry_counts_since_the_last_one_that_was_sent():
    """Increases that could not be sent are in the next message; a restarted counter gives no negative increase."""
    window = Window("d1", now=0.0)
    totals = flatten({"digits": {"local": 5}})
    assert window.peek(totals, now=60.0, at=1.0).counters == {"digits.local": 5.0}
    assert window.peek(totals, now=70.0, at=1.0).seconds == 70.0
    window.sent(totals, now=70.0)
    later = window.peek(flatten({"digits": {"local": 7}}), now=130.0, at=1.0)
    assert (later.counters, later.seconds) == ({"digits.local": 2.0}, 60.0)
    assert window.peek(flatten({"digits": {"local": 1}}), now=130.0, at=1.0).counters == {"digits.local": 1.0}
