"""Stores: one contract for memory, a folder and an object store; then the additional promises of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import NotFoundError, SettingsError, StoreError, UnavailableError
from edgekit.protocols import Store
from edgekit.storage.stores import FileStore, open_store
from tests.simulators.s3 import s3_server
from tests.simulators.store import MemoryStore


@pytest.fixture(params=["memory", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "file":
        yield open_store(f"file://{tmp_path}/with%20space/registry")
    else:
        with s3_server() as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT", endpoint)
            monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
            monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
            monkeypatch.setenv("AWS_REGION", "us-east-1")
            yield open_store("s3://models/registry")


def test_what_was_put_is_read_back(store: Store) -> None:
    """A blob comes back whole, in parts and by size; a second put replaces it."""
    store.put("a/b/one", b"0123456789")
    assert store.get("a/b/one") == b"0123456789"
    assert store.size("a/b/one") == 10
    assert store.get_range("a/b/one", 2, 3) == b"234"
    assert store.exists("a/b/one")
    store.put("a/b/one", b"new")
    assert store.get("a/b/one") == b"new"


def test_a_range_ends_with_the_blob(store: Store) -> None:
    """A range beyond the end is shorter or empty; a range of no bytes is an error of the caller."""
    store.put("one", b"0123456789")
    assert store.get_range("one", 8, 100) == b"89"
    assert store.get_range("one", 10, 1) == b""
    assert store.get_range("one", 11, 1) == b""
    with pytest.raises(ValueError, match="range"):
        store.get_range("one", 0, 0)


def test_a_file_is_streamed_and_an_empty_blob_is_a_blob(store: Store, tmp_path: Path) -> None:
    """A Path is read from disk; an empty blob can be stored."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_000))
    store.put("big", source)
    store.put("empty", b"")
    assert store.get("big") == source.read_bytes()
    assert store.get("empty") == b""
    assert store.size("empty") == 0
    assert store.exists("empty")


def test_what_is_not_there_is_not_found(store: Store) -> None:
    """Every reading method raises NotFoundError."""
    store.put("folder/blob", b"x")
    for call in (store.get, store.size, lambda name: store.get_range(name, 0, 1)):
        for name in ("nothing", "folder"):
            with pytest.raises(NotFoundError):
                call(name)
    assert not store.exists("nothing")
    assert not store.exists("folder")


def test_a_listing_is_sorted_and_keeps_to_its_folder(store: Store) -> None:
    """A prefix is a folder: `ab/x` is not below `a`."""
    for name in ("a/2", "a/1", "a/c/3", "ab/x"):
        store.put(name, b"x")
    assert list(store.list("a")) == ["a/1", "a/2", "a/c/3"]
    assert list(store.list("a/")) == ["a/1", "a/2", "a/c/3"]
    assert list(store.list("none")) == []
    assert list(store.list("")) == ["a/1", "a/2", "a/c/3", "ab/x"]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/absolute", "a//b", "", "."])
def test_a_name_cannot_leave_the_store(store: Store, name: str, tmp_path: Path) -> None:
    """A name that would leave the store is refused, for reading and for writing."""
    with pytest.raises(NotFoundError):
        store.get(name)
    with pytest.raises(NotFoundError):
        store.put(name, b"x")
    assert not list(tmp_path.rglob("outside"))


def test_an_absent_folder_is_an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative URL is resolved when the store is opened, so a later change of the working folder does not matter."""
    monkeypatch.chdir(tmp_path)
    store = open_store("file://registry")
    monkeypatch.chdir("/")
    assert list(store.list("")) == []
    store.put("x", b"1")
    assert (tmp_path / "registry" / "x").read_bytes() == b"1"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    """When the source cannot be read, the old blob stays and no new one appears."""
    store = FileStore(tmp_path / "registry")
    store.put("x", b"old")
    for name in ("x", "y"):
        with pytest.raises(StoreError):
            store.put(name, tmp_path / "absent")
    assert store.get("x") == b"old"
    assert store.list("") == ["x"]


def test_a_store_in_a_file_is_a_store_error(tmp_path: Path) -> None:
    """A folder that cannot be made is reported as the store's failure, not as a crash."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/registry"):
        FileStore(tmp_path / "file" / "registry").put("x", b"1")
    with (
        pytest.raises(StoreError, match="file/registry cannot be written"),
        FileStore(tmp_path / "file/registry").lock(),
    ):
        pass


def test_an_object_store_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection becomes one StoreError line that names the store."""
    with s3_server() as endpoint:
        pass
    for name, value in {"ENDPOINT": endpoint, "ALLOW_HTTP": "true", "SKIP_SIGNATURE": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(StoreError, match=r"s3://models/x") as caught:
        open_store("s3://models/x").get("a")
    assert "\n" not in str(caught.value)


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    """The lock is exclusive and is released; a writer that waited too long gets an error with the reason."""
    first, second = FileStore(tmp_path), FileStore(tmp_path)
    with first.lock(), pytest.raises(UnavailableError, match="another writer"), second.lock(timeout_seconds=0):
        pass
    with second.lock(timeout_seconds=0):
        assert second.list("") == []


@pytest.mark.parametrize("url", ["registry", "ftp://host/x", "file://", "http://host/x", "memory:///"])
def test_an_unknown_url_is_refused_with_the_known_kinds(url: str) -> None:
    """The advice shows every supported form."""
    with pytest.raises(SettingsError) as caught:
        open_store(url)
    assert "s3://" in caught.value.advice
