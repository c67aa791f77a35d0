"""Checks slots after damage on the disk, and rebuilds the update state of a model whose record is lost."""

from __future__ import annotations

import hashlib
import logging

from device_agents.deployment import Installed, UpdateRecord, UpdateState
from device_agents.storage.slots import Pointer, Slots, verify_file
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.errors import DataError, DiskError, EdgekitError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)


def check_slot(disk: Disk, model: str, installed: Installed) -> Manifest:
    """Hash every file of a slot.

    Raises:
        DiskError, VerificationError, ManifestError: the slot does not have the whole bundle that `installed` names.
    """
    slots = Slots(disk, model)
    manifest = slots.manifest(installed.slot, installed.digest)
    for entry in manifest.files:
        verify_file(disk, f"{slots.folder(installed.slot)}/{entry.path}", entry)
    return manifest


def rebuilt_state(disk: Disk, model: str) -> UpdateRecord:
    """The state of a model whose record is lost, from its pointer: the known-good bundle, if that slot is whole.

    The release counter is not on the disk, but the version is: a lower one is refused, as before the loss.
    """
    try:
        pointer = Slots(disk, model).pointer()
        good = installed_in(disk, model, pointer.known_good) if pointer.known_good else None
    except (EdgekitError, ValueError) as error:
        log.error("%s: its state cannot be rebuilt: %s", model, error)
        pointer, good = Pointer(), None
    if good is not None and pointer.active == pointer.known_good:
        return UpdateRecord(active=good, known_good=good, highest=good.version)
    # The active bundle was not committed, or is damaged: ROLLING_BACK writes the pointer again.
    highest = good.version if good is not None else ""
    return UpdateRecord(name=UpdateState.ROLLING_BACK, active=good, known_good=good, highest=highest, ending="retry")


def installed_in(disk: Disk, model: str, slot: str) -> Installed:
    """The bundle in a slot, with every file hashed.

    Raises:
        DiskError, VerificationError, ManifestError: there is no whole bundle in the slot.
    """
    slots = Slots(disk, model)
    try:
        data = disk.read(f"{slots.folder(slot)}/{MANIFEST_NAME}")
    except FileNotFoundError as error:
        raise DiskError(f"slot {disk.path(slots.folder(slot))} has no bundle") from error
    manifest = parse_manifest(data)
    if manifest.name != model:
        raise DataError(f"slot {disk.path(slots.folder(slot))} has a bundle of {manifest.name!r}, expected {model!r}")
    installed = Installed(slot, hashlib.sha256(data).hexdigest(), manifest.version, 0)
    check_slot(disk, model, installed)
    return installed
