"""The fuzz targets: one function for each parser of untrusted bytes. Only an undocumented exception leaves a target."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets

from device_agents.storage.journal import Journal
from device_agents.storage.slots import Slots
from edgekit.bundle.manifest import parse_manifest
from edgekit.errors import DataError, ManifestError, SettingsError, VerificationError
from edgekit.mqtt import messages, topics
from edgekit.settings import AgentSettings, load_settings
from edgekit.storage.disk import MemoryDisk
from edgekit.transfer.blocks import BlockMap
from edgekit.trust.assignment import _parse
from edgekit.trust.envelopes import open_envelope

WIRE = (messages.Answer, messages.BlocksRequest, messages.MetadataRequest, messages.Presence, messages.Telemetry)
SIGNED = (messages.Reported, messages.Event, messages.Result, messages.Command)


@functools.cache
def _key() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def manifest(data: bytes) -> None:
    """The manifest of a bundle."""
    with contextlib.suppress(ManifestError):
        parse_manifest(data)


def assignment(data: bytes) -> None:
    """An assignment, as if its signature were valid."""
    with contextlib.suppress(VerificationError, RepositoryError):
        document = Metadata[Targets].from_bytes(data)
        if isinstance(document.signed, Targets):
            _parse(document.signed)


def frame(data: bytes) -> None:
    """An unsigned message: a block, a request, presence or telemetry."""
    for kind in WIRE:
        with contextlib.suppress(DataError):
            messages.decode(data, kind)


def report(data: bytes) -> None:
    """A signed message, and its body as if the signature were valid."""
    for kind in SIGNED:
        with contextlib.suppress(DataError, VerificationError):
            messages.decode(data, kind)
        with contextlib.suppress(DataError, VerificationError):
            open_envelope(data, kind, _key().public_key)


def topic(data: bytes) -> None:
    """The name of a topic."""
    name = data.decode("utf-8", "replace")
    topics.parse_request(name)
    topics.parse_device(name)


def journal(data: bytes) -> None:
    """Journal and slot pointer on a damaged disk."""
    disk = MemoryDisk()
    for name in ("journal/device.json", "journal/models/digits.json", "models/digits/active"):
        disk.write(name, data)
    with contextlib.suppress(DataError):
        Journal(disk).models()
    with contextlib.suppress(DataError):
        Slots(disk, "digits").pointer()


def block_map(data: bytes) -> None:
    """The map of the blocks that a download already has."""
    with contextlib.suppress(DataError):
        BlockMap.from_bytes(10 * 65536 + 1, data)


def settings(data: bytes) -> None:
    """A settings file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "agent.toml")
        file.write_bytes(data)
        with contextlib.suppress(SettingsError):
            load_settings(AgentSettings, file=file, environ={})


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (manifest, assignment, frame, report, topic, journal, block_map, settings)
}
CORPORA = Path(__file__).parents[1] / "assets" / "fuzz"


def corpus(name: str) -> list[bytes]:
    """The stored inputs of a target: seeds, and inputs that once made it fail."""
    return [path.read_bytes() for path in sorted((CORPORA / name).iterdir())]
