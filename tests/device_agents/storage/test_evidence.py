"""The file with the evidence of installed bundles."""

from device_agents.storage.evidence import FILE_NAME, KEPT_BUNDLES, EvidenceFile
from edgekit.bundle.evidence import Evidence
from tests.simulators.disk import FaultyDisk

ONE = (Evidence("onnxruntime", "1.32.0", "aarch64", "equal", "onnxruntime 1.31.1", "a" * 64),)


def test_evidence_is_kept_by_model_and_bundle():
    """It is there after a start, and gone with the model."""
    disk = FaultyDisk()
    file = EvidenceFile(disk)
    assert file.put("digits", "d1", ONE)
    assert not file.put("digits", "d1", ONE)  # nothing is written again
    assert EvidenceFile(disk).get("digits", "d1") == ONE
    assert file.get("digits", "d2") == file.get("other", "d1") == ()
    file.forget("digits")
    assert EvidenceFile(disk).get("digits", "d1") == ()


def test_a_bundle_without_evidence_writes_nothing():
    """Most bundles have none."""
    disk = FaultyDisk()
    assert not EvidenceFile(disk).put("digits", "d1", ())
    assert not disk.exists(FILE_NAME)


def test_only_the_newest_bundles_of_a_model_are_kept():
    """The file does not grow with every update."""
    file = EvidenceFile(FaultyDisk())
    for number in range(KEPT_BUNDLES + 2):
        file.put("digits", f"d{number}", ONE)
    kept = [number for number in range(KEPT_BUNDLES + 2) if file.get("digits", f"d{number}")]
    assert kept == [2, 3, 4]


def test_a_damaged_file_is_no_evidence_and_can_be_written_again():
    """The device then says that nothing is proven, until the next metadata."""
    disk = FaultyDisk()
    disk.write(FILE_NAME, b'{"digits": 3')
    file = EvidenceFile(disk)
    assert file.get("digits", "d1") == ()
    assert file.put("digits", "d1", ONE)
    assert file.get("digits", "d1") == ONE
