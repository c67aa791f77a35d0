"""What is made of a disk that damaged something: which slots are whole, and what a lost record must have said."""

from __future__ import annotations

import hashlib
import logging

from device_agents.deployment import Installed, S, State
from device_agents.storage.slots import Pointer, Slots, verify_file
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.errors import DataError, DiskError, EdgekitError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)


def check_slot(disk: Disk, model: str, installed: Installed) -> Manifest:
    """Hash everything that a slot holds.

    Raises:
        DiskError, VerificationError, ManifestError: it is not the whole bundle that `installed` names.
    """
    slots = Slots(disk, model)
    manifest = slots.manifest(installed.slot, installed.digest)
    for entry in manifest.files:
        verify_file(disk, f"{slots.folder(installed.slot)}/{entry.path}", entry)
    return manifest


def rebuilt_state(disk: Disk, model: str) -> State:
    """The state of a model whose record is lost: what its pointer calls known to be good, if that slot is whole.

    Its release counter is not on the disk, so the first release that an assignment names after this is taken.
    """
    try:
        pointer = Slots(disk, model).pointer()
        good = installed_in(disk, model, pointer.known_good) if pointer.known_good else None
    except (EdgekitError, ValueError) as error:
        log.error("%s: nothing of it can be taken up: %s", model, error)
        pointer, good = Pointer(), None
    if good is not None and pointer.active == pointer.known_good:
        return State(active=good, known_good=good)
    # What was active was not proved yet, or is not whole: the pointer is written anew.
    return State(name=S.ROLLING_BACK, active=good, known_good=good, ending="retry")


def installed_in(disk: Disk, model: str, slot: str) -> Installed:
    """What a slot holds, every byte of it checked.

    Raises:
        DiskError, VerificationError, ManifestError: it is no whole bundle.
    """
    slots = Slots(disk, model)
    try:
        data = disk.read(f"{slots.folder(slot)}/{MANIFEST_NAME}")
    except FileNotFoundError as error:
        raise DiskError(f"slot {disk.path(slots.folder(slot))} holds no bundle") from error
    manifest = parse_manifest(data)
    if manifest.name != model:
        raise DataError(f"slot {disk.path(slots.folder(slot))} holds a bundle of {manifest.name!r}")
    installed = Installed(slot, hashlib.sha256(data).hexdigest(), manifest.version, 0)
    check_slot(disk, model, installed)
    return installed
