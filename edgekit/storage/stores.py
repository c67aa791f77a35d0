"""Stores: blobs in a folder or in an object store, all through one library (file://, s3://, gs://, az://).

Object stores take their credentials from environment variables (AWS_*, GOOGLE_*, AZURE_*).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import LocalStore, from_url

from edgekit.errors import NotFoundError, SettingsError, StoreError, UnavailableError
from edgekit.protocols import Store
from edgekit.storage.files import sync_file, sync_folder, try_lock
from edgekit.storage.store_lease import POLL_SECONDS, ConflictError, Lease, UnconditionalError

OBJECT_SCHEMES = ("s3", "gs", "az")
FILE_PREFIX = "file://"
LOCK_NAME = ".lock"
# The library retries for three minutes by default, which is too long for a person who waits at a prompt.
RETRY = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}

_FAILURES = (BaseError, OSError, ValueError)


def open_store(url: str, *, poll_seconds: float = POLL_SECONDS) -> Store:
    """Open the store at `url`.

    Args:
        url: ``file://`` and a folder (absolute, or relative to the working folder; the first write creates it), or
            ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://account/container/prefix``.
        poll_seconds: As `Lease`, for object stores.

    Raises:
        SettingsError: the URL has another scheme, or the library refuses it.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not rest or scheme not in ("file", *OBJECT_SCHEMES):
        raise SettingsError(
            f"{url!r} is not a store URL",
            advice="Use file://FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://ACCOUNT/CONTAINER/PREFIX.",
        )
    if scheme == "file":
        return FileStore(Path(_folder_of(rest)))
    try:
        return BucketStore(from_url(url, retry_config=RETRY), url, poll_seconds=poll_seconds)
    except _FAILURES as error:
        raise SettingsError(f"store {url!r} cannot be opened: {_first_line(error)}") from error


class ObjectStore:
    """A Store in one bucket or folder. A write replaces an object in one step; readers get the old or the new content.

    Args:
        remote: The library's store.
        label: Name of the store in messages.
        poll_seconds: As `Lease`.
    """

    def __init__(self, remote: Any, label: str, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._remote = remote
        self._label = label
        self._lease = Lease(self, label, poll_seconds=poll_seconds)

    def get(self, name: str) -> bytes:
        """See Store.get."""
        with self._wrapped(name, "read"):
            return bytes(obstore.get(self._remote, _checked(name)).bytes())

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """See Store.get_range; a range that begins after the end is empty."""
        if length <= 0 or start < 0:
            raise ValueError(f"range of {length} bytes from {start}, expected at least one byte and a start from 0")
        try:
            return bytes(obstore.get_range(self._remote, _checked(name), start=start, length=length))
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except _FAILURES as error:
            if start >= self.size(name):
                return b""
            raise self._failed(name, "read", error) from error

    def size(self, name: str) -> int:
        """See Store.size."""
        with self._wrapped(name, "read"):
            return int(obstore.head(self._remote, _checked(name))["size"])

    def put(self, name: str, data: bytes | Path) -> None:
        """See Store.put."""
        try:
            obstore.put(self._remote, _checked(name), data)
        except _FAILURES as error:  # includes a missing source file
            raise self._failed(name, "written", error) from error

    def remove(self, name: str) -> None:
        """See Store.remove."""
        with contextlib.suppress(NotFoundError), self._wrapped(name, "removed"):
            obstore.delete(self._remote, _checked(name))

    def exists(self, name: str) -> bool:
        """See Store.exists."""
        try:
            self.size(name)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        """See Store.list; `prefix` is a folder, empty for the whole store."""
        folder = prefix.rstrip("/")
        with self._wrapped(prefix, "listed"):
            chunks = obstore.list(self._remote, prefix=_checked(folder) if folder else None)
            return sorted(entry["path"] for chunk in chunks for entry in chunk)

    @contextlib.contextmanager
    def lock(self, timeout_seconds: float = 60.0) -> Iterator[None]:
        """Exclude other writers; the lease of a writer that died ends after 30 seconds.

        A store without conditional writes cannot be locked: this logs a warning, and the caller must allow only one
        writer at a time.

        Args:
            timeout_seconds: Time to wait for another writer.

        Raises:
            UnavailableError: another writer held the lease for the whole time.
            StoreError: the store failed.
        """
        with self._lease.hold(timeout_seconds):
            yield

    def put_checked(self, name: str, data: bytes, expected: bytes | None) -> None:
        """Write if the object still has the content `expected`.

        Args:
            name: Name of the object.
            data: The new content.
            expected: The content that the caller has read. None: the object must be absent, or a remainder of an
                interrupted change.

        Raises:
            ConflictError: another writer has changed the object.
            StoreError: the store failed.
        """
        current = self.get_tagged(name)
        if current is not None and current[0] == data:
            return
        try:
            if expected is not None and (current is None or current[0] != expected):
                raise ConflictError(f"{self._label}: another writer has changed {name!r}")
            if expected is None and current is not None and not self._lease.held():
                raise ConflictError(f"{self._label}: another writer has written {name!r}")
            self.put_tagged(name, data, current[1] if current else None)
        except UnconditionalError:
            self.put(name, data)

    def get_tagged(self, name: str) -> tuple[bytes, str] | None:
        """An object and its tag, which changes with every write; None if there is no such object."""
        try:
            with self._wrapped(name, "read"):
                result = obstore.get(self._remote, _checked(name))
                return bytes(result.bytes()), str(result.meta["e_tag"])
        except NotFoundError:
            return None

    def put_tagged(self, name: str, data: bytes, tag: str | None) -> str:
        """Write if the object has `tag` (None: is absent); returns its new tag.

        Raises:
            ConflictError: the object has another tag.
            UnconditionalError: the store does not support conditional writes.
            StoreError: the store failed.
        """
        mode: Any = "create" if tag is None else {"e_tag": tag}
        try:
            return str(obstore.put(self._remote, _checked(name), data, mode=mode, use_multipart=False)["e_tag"])
        except (AlreadyExistsError, PreconditionError) as error:
            raise ConflictError(f"{self._label}: another writer has changed {name!r}") from error
        except (NotSupportedError, NotImplementedError) as error:
            raise UnconditionalError from error
        except _FAILURES as error:
            raise self._failed(name, "written", error) from error

    @contextlib.contextmanager
    def _wrapped(self, name: str, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except _FAILURES as error:
            raise self._failed(name, verb, error) from error

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"{self._label} has no {name!r}")

    def _failed(self, name: str, verb: str, error: Exception) -> StoreError:
        return StoreError(f"{self._label}: {name!r} cannot be {verb}: {_first_line(error)}")


class BucketStore(ObjectStore):
    """A Store in a bucket of a service, which can sign URLs."""

    def signed_url(self, name: str, seconds: int) -> str:
        """A URL that lets anybody read the blob for this number of seconds. Raises StoreError if signing fails."""
        with self._wrapped(name, "signed"):
            return str(obstore.sign(self._remote, "GET", _checked(name), timedelta(seconds=seconds)))


class FileStore(ObjectStore):
    """A Store in a folder. A write goes to a temporary file, which replaces the old file and is synced to the disk."""

    def __init__(self, folder: Path) -> None:
        # An absolute path, so that a later change of the working folder does not move the store.
        self._folder = folder.resolve()
        self._local: LocalStore | None = None
        self._label = FILE_PREFIX + str(self._folder)

    @property
    def _remote(self) -> LocalStore:
        if self._local is None:
            # The library panics if the folder is missing; a missing folder is an empty store.
            self._folder.mkdir(parents=True, exist_ok=True)
            self._local = LocalStore(prefix=self._folder)
        return self._local

    def put(self, name: str, data: bytes | Path) -> None:
        """See Store.put; the bytes are on the disk when this returns."""
        super().put(name, data)
        with self._wrapped(name, "written"):
            path = self._folder / name
            sync_file(path)
            sync_folder(path.parent)

    def list(self, prefix: str) -> list[str]:
        """See Store.list."""
        return [name for name in super().list(prefix) if name != LOCK_NAME]

    def put_checked(self, name: str, data: bytes, expected: bytes | None) -> None:
        """As for object stores. The lock excludes other writers, so comparing before the write is enough."""
        if expected is not None and self.get(name) != expected:
            raise ConflictError(f"{self._label}: another writer has changed {name!r}")
        self.put(name, data)

    @contextlib.contextmanager
    def lock(self, timeout_seconds: float = 30.0) -> Iterator[None]:
        """Exclude other writers on this machine; the lock ends with the process at the latest.

        Args:
            timeout_seconds: Time to wait for another writer.

        Raises:
            UnavailableError: another writer held the lock for the whole time.
            StoreError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"{self._label} cannot be written: {error}") from error
        try:
            _take(handle, time.monotonic() + timeout_seconds, self._label)
            yield
        finally:
            os.close(handle)


def _take(handle: int, deadline: float, label: str) -> None:
    while not try_lock(handle):
        if time.monotonic() >= deadline:
            raise UnavailableError(
                f"{label} is held by another writer",
                advice="Wait until the other publish has ended, then try again.",
            )
        time.sleep(0.05)


def _folder_of(path: str, *, windows: bool = os.name == "nt") -> str:
    """The folder of a ``file://`` URL; Windows writes its drives as ``file:///C:/folder`` or ``file://C:/folder``."""
    path = unquote(path)
    return path[1:] if windows and re.match(r"/[A-Za-z]:", path) else path


def _checked(name: str) -> str:
    """Check a name, which may come from the network: it must not leave the store or be ambiguous."""
    parts = name.split("/")
    if any(part in ("", ".", "..", LOCK_NAME) for part in parts) or "\\" in name or "\0" in name:
        raise NotFoundError(f"{name!r} is not the name of a blob")
    return name


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
