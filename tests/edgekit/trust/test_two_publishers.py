"""Two publishers at the same time, on a folder and on an object store: both succeed, or one gets an error."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import UnavailableError
from edgekit.protocols import Store
from edgekit.storage import stores
from edgekit.storage.store_lease import LEASE_NAME, ConflictError, Lease
from edgekit.storage.stores import ObjectStore
from edgekit.trust.repository import Repository
from edgekit.trust.state import METADATA, TIMESTAMP_NAME
from tests.simulators.bundles import manifest_of
from tests.simulators.s3 import s3_server


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/registry"
        return
    with s3_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT", endpoint)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield "s3://models/registry"


def open_store(url: str) -> Store:
    return stores.open_store(url, poll_seconds=0.01)


@pytest.fixture
def keys(url: str, tmp_path: Path) -> Path:
    """The keys of a registry with one model."""
    repository = Repository(open_store(url), tmp_path / "keys")
    repository.create()
    repository.add_model("digits")
    return tmp_path / "keys"


def version(number: int) -> bytes:
    return manifest_of("digits", f"1.{number}.0", "pi", b"m").canonical_bytes()


def published(url: str, keys: Path) -> dict[str, int]:
    state = Repository(open_store(url), keys)._committer.load()
    return {file.custom["version"]: file.custom["release"] for file in state.publisher("digits").targets.values()}


def test_publishers_that_begin_together_all_land(url: str, keys: Path, tmp_path: Path) -> None:
    """Publishers with separate key folders: no release is lost, and no number is used twice."""
    errors: list[Exception] = []

    def work(first: int) -> None:
        mine = tmp_path / f"keys-{first}"
        shutil.copytree(keys, mine)
        repository = Repository(open_store(url), mine)
        for number in range(first, first + 2):
            try:
                repository.publish(version(number))
            except Exception as error:  # checked below
                errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = published(url, keys)
    assert len(found) == 6
    assert sorted(found.values()) == list(range(1, 7))


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_publisher_that_slept_through_its_turn_changes_nothing(url: str, keys: Path) -> None:
    """Its lease was taken over before it wrote; the other publisher's commit stays intact."""
    slow = open_store(url)
    assert isinstance(slow, ObjectStore)
    repository = Repository(slow, keys)
    other = Repository(open_store(url), keys)
    checked, slept = slow.put_checked, []

    def sleeps(name: str, data: bytes, expected: bytes | None) -> None:
        if not slept:
            slept.append(name)
            found = slow.get_tagged(LEASE_NAME)
            assert found is not None
            slow.put_tagged(LEASE_NAME, b"", found[1])  # what a waiter does after half a minute
            other.publish(version(1))
        checked(name, data, expected)

    slow.put_checked = sleeps  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match="another writer"):
        repository.publish(version(2))
    assert published(url, keys) == {"1.1.0": 1}
    slow.put_checked = checked  # type: ignore[method-assign]
    repository.publish(version(2))
    assert published(url, keys) == {"1.1.0": 1, "1.2.0": 2}


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_writer_that_died_is_waited_for_and_then_passed_over(url: str, keys: Path) -> None:
    """Its lease is taken over when it has not changed for the lease time, and its remaining files are overwritten."""
    store = open_store(url)
    assert isinstance(store, ObjectStore)
    store.put(LEASE_NAME, b"somebody who died")
    store.put(f"{METADATA}3.snapshot.json", b"half a change")
    with pytest.raises(UnavailableError, match="held by another writer"), store._lease.hold(0.05):
        pass
    store._lease = Lease(store, "here", seconds=0.1)
    Repository(store, keys).publish(version(1))
    assert published(url, keys) == {"1.1.0": 1}


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_the_timestamp_is_only_replaced_where_it_is_the_one_that_was_read(url: str, keys: Path) -> None:
    """The commit point is a conditional write."""
    store = open_store(url)
    assert isinstance(store, ObjectStore)
    with pytest.raises(ConflictError, match=r"timestamp\.json"):
        store.put_checked(METADATA + TIMESTAMP_NAME, b"new", b"what it was long ago")


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_store_without_conditional_writes_still_works(
    url: str, keys: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It works for one publisher at a time, and the log warns about it."""
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    Repository(open_store(url), keys).publish(version(1))
    assert published(url, keys) == {"1.1.0": 1}
    assert "no conditional writes" in caplog.text
