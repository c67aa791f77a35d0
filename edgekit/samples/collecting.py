"""Reads the samples of a fleet from the registry's store, opens them, and writes them as .npz files."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgekit.errors import DataError, DiskError, NotFoundError, SealError, UnavailableError
from edgekit.protocols import Store
from edgekit.samples import names
from edgekit.samples.names import StoredName, parse_name
from edgekit.samples.sample import Sample, decode_sample
from edgekit.samples.stored import decode_stored
from edgekit.samples.table import ID, Table, interface_of, joined, table_of
from edgekit.sealing.messages import open_message, receiver
from edgekit.storage.files import sync_file, sync_folder, try_lock
from edgekit.tensors import Array

LOCK_NAME = ".collect.lock"
Progress = Callable[[int, int], None]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples are collected.

    Attributes:
        devices: Only of these; None for all, also of devices that were removed since.
        model: Only of this model; empty for all.
        since: Only those that reached the controller at this time (wall clock seconds) or later.
    """

    devices: Collection[str] | None = None
    model: str = ""
    since: float = 0.0


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """The samples that were found and written.

    Attributes:
        samples: Number of selected samples.
        files: For each file its path, model, number of rows, and number of rows that were not in it before.
        reasons, devices: Number of the selected samples by reason and by device.
        other_keys: Samples that are sealed for keys that are not here.
        damaged: Why samples cannot be read, by their names in the store.
        removed: Samples that were removed from the store.
    """

    samples: int = 0
    files: list[dict[str, Any]] = []
    reasons: dict[str, int] = {}
    devices: dict[str, int] = {}
    other_keys: int = 0
    damaged: dict[str, str] = {}
    removed: int = 0


class Opened(msgspec.Struct):
    """The opened samples of a store, and those that could not be opened."""

    samples: dict[str, Sample] = {}
    names: list[StoredName] = []
    other_keys: int = 0
    damaged: dict[str, str] = {}


def open_samples(
    store: Store,
    keys: Mapping[str, X25519PrivateKey],
    selection: Selection,
    progress: Progress = lambda done, total: None,
) -> Opened:
    """Open the selected samples; each id of a device once.

    Raises:
        StoreError: the store failed.
        NotFoundError: there are samples, and none is sealed for one of the keys.
    """
    found = Opened()
    stored = [name for text in store.list(names.folder()) if (name := parse_name(text)) is not None and name.size]
    chosen = [name for name in stored if selection.devices is None or name.device in selection.devices]
    for done, name in enumerate(chosen, 1):
        try:
            _open_one(store, keys, selection, name, found)
        except NotFoundError:
            continue  # removed meanwhile
        except (DataError, SealError) as error:
            found.damaged[name.text] = str(error)
        progress(done, len(chosen))
    if found.other_keys and not found.samples:
        raise NotFoundError(
            f"{found.other_keys} samples are sealed for keys that are not here",
            advice="Run it where the private key of the devices' sample_key is: the folder samples of the key folder.",
        )
    return found


def _open_one(
    store: Store, keys: Mapping[str, X25519PrivateKey], selection: Selection, name: StoredName, found: Opened
) -> None:
    stored = decode_stored(store.get(name.text))
    if stored.received < selection.since or selection.model not in ("", stored.model):
        return
    private = keys.get(receiver(stored.sealed))
    if private is None:
        found.other_keys += 1
        return
    sample = decode_sample(open_message(stored.sealed, private, name.id.encode()))
    if (sample.id, sample.device, sample.model) != (name.id, name.device, stored.model):
        raise DataError(f"it holds sample {sample.id} of {sample.device!r} and model {sample.model!r}")
    found.samples[f"{name.device} {name.id}"] = sample
    found.names.append(name)


def write_samples(opened: Opened, folder: Path, *, dry_run: bool = False) -> Collected:
    """Write one file for each model and interface. Rows that a file has already stay; it is replaced in one step.

    Raises:
        DataError: a file of that name is there, and is no table of the same interface.
        DiskError: a file cannot be written; those that are there stay as they were.
        UnavailableError: another collect writes into the folder.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in opened.samples.values():
        groups.setdefault(f"{sample.model}-{interface_of(sample)}.npz", []).append(sample)
    with contextlib.nullcontext() if dry_run or not groups else _locked(folder):
        files = [_write_group(folder / file, group, dry_run=dry_run) for file, group in sorted(groups.items())]
    return Collected(
        samples=len(opened.samples),
        files=files,
        reasons=dict(Counter(one.reason.value for one in opened.samples.values())),
        devices=dict(Counter(one.device for one in opened.samples.values())),
        other_keys=opened.other_keys,
        damaged=opened.damaged,
    )


def remove_samples(store: Store, opened: Opened) -> int:
    """Replace the opened samples in the store by marks without content; returns their number. Raises StoreError."""
    for name in opened.names:
        store.put(name._replace(size=0).text, b"")
        store.remove(name.text)
    return len(opened.names)


def _write_group(path: Path, samples: list[Sample], *, dry_run: bool) -> dict[str, Any]:
    table: Table = table_of(samples)
    before = 0
    if path.exists():
        old = read_table(path)
        before = len(old[ID])
        table = joined(old, table)
    else:
        table = joined({name: value[:0] for name, value in table.items()}, table)
    rows = len(table[ID])
    if rows > before and not dry_run:
        _write(path, table)
    return {"file": str(path), "model": samples[0].model, "rows": rows, "new": rows - before}


def read_table(path: Path) -> dict[str, Array]:
    """The arrays of a file that `write_samples` wrote.

    Raises:
        DataError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as loaded:
            table = {name: loaded[name] for name in loaded.files}
        if ID not in table:
            raise ValueError(f"it has no array {ID}")
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is there, and is no file that edgekit collect wrote: {error}",
            advice="Name another folder with -o.",
        ) from error
    return table


def _write(path: Path, table: Table) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        with zipfile.ZipFile(fresh, "w") as file:
            for name, value in sorted(table.items()):
                with file.open(
                    zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True
                ) as member:  # the same bytes always
                    np.lib.format.write_array(member, np.ascontiguousarray(value), allow_pickle=False)
        sync_file(fresh)
        os.replace(fresh, path)
        sync_folder(path.parent)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise DiskError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        if not try_lock(handle):
            raise UnavailableError(f"another edgekit collect writes into {folder}", advice="Wait until it has ended.")
        yield
    finally:
        os.close(handle)
