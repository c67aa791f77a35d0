"""Which metadata files a device lacks, from what it has and what the repository lists."""

import json

import pytest

from edgekit.errors import DataError
from edgekit.transfer.newer_metadata import MAX_HINTS, hinted_models, listed_versions, newer_files


def test_the_files_of_higher_versions_are_newer():
    """Of roles that the device has or needs (0), and of no other one."""
    snapshot = json.dumps({"signed": {"meta": {f"{role}.json": {"version": 4} for role in ("targets", "p-a", "p-b")}}})
    listed = listed_versions(snapshot.encode())
    assert listed == {"targets": 4, "p-a": 4, "p-b": 4}
    assert newer_files({"targets": 4, "p-b": 0}, listed) == ["4.p-b.json"]
    assert newer_files({"targets": 3, "p-a": 5}, listed) == ["4.targets.json"]
    assert newer_files({}, listed) == []


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"signed": {"meta": {"a.json": {"version": "1"}}}}'])
def test_a_document_without_versions_is_a_data_error(text):
    """So that the service leaves it to single requests."""
    with pytest.raises(DataError, match="lists no versions"):
        listed_versions(text)


def test_an_unverified_assignment_gives_at_most_a_few_names():
    """They are a hint for a request; what is no assignment gives none."""
    paths = [f"models/m{number // 2}/t/1.0.{number}/manifest.json" for number in range(100)]
    order = {"signed": {"targets": {path: {"length": 1} for path in ["other/x", *paths]}}}
    assert hinted_models(json.dumps(order).encode()) == [f"m{number}" for number in range(MAX_HINTS)]
    assert hinted_models(b"\x00") == hinted_models(b"[]") == hinted_models(b'{"signed": {"targets": 5}}') == []
