"""Wire messages as frozen values, MessagePack maps on the wire. Unknown keys are ignored, ids travel in the payload.

The assignment on ``desired`` is a TUF document and lives in trust/; everything else that crosses MQTT is here.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from edgekit.errors import DataError

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_WAVE_BLOCKS = 3  # of 64 KiB, so that they fit one payload

T = TypeVar("T")


class Range(msgspec.Struct, frozen=True, array_like=True):
    """Blocks from `first` to `last`, both included."""

    first: int
    last: int


class BlocksRequest(msgspec.Struct, frozen=True):
    """``request/blocks/<id>``: send me these blocks of a blob, at most `credit` of them.

    `left` is how many of the blob's blocks will still be missing then, so that 0 ends a transfer; -1 where unknown.
    `missing` are all of them, from a device that would listen to a wave; empty from one that would not. With `urls` it
    would rather fetch from elsewhere: where the controller knows a place, it says so instead of sending blocks.
    """

    id: str
    digest: str
    ranges: tuple[Range, ...]
    credit: int
    left: int = -1
    missing: tuple[Range, ...] = ()
    urls: bool = False


class MetadataRequest(msgspec.Struct, frozen=True):
    """``request/metadata/<id>``: send me this file of the TUF repository, for example ``timestamp.json``."""

    id: str
    name: str


class Answer(msgspec.Struct, frozen=True):
    """``answer/<id>``: one block, one part of a metadata file, or an error.

    Attributes:
        id: Of the request.
        index: Block index, or part number.
        total: Blocks of the blob, or parts of the file.
        data: The bytes; empty with an error.
        error: ``""``, ``not-found``, ``busy``, ``unknown-kind`` or ``bad-request``.
        message: For people.
        retry_seconds: With ``busy``: when to ask again; 0 where the controller cannot tell.
        urls: Where the blob can be had by HTTP range; hints that nobody signed. No block comes with them.
        wave: With ``busy``: the blob's blocks are about to come on ``wave/<digest>``; ask for the rest afterwards.
    """

    id: str
    index: int = 0
    total: int = 1
    data: bytes = b""
    error: str = ""
    message: str = ""
    retry_seconds: float = 0.0
    wave: bool = False
    urls: tuple[str, ...] = ()


class WaveBlocks(msgspec.Struct, frozen=True):
    """``wave/<digest>``: up to MAX_WAVE_BLOCKS consecutive blocks of a blob from `first` on; none at the end."""

    first: int
    data: bytes


class WaveClaim(msgspec.Struct, frozen=True):
    """``wave/<digest>/claim``: what controllers tell each other, so that one of them sends.

    Attributes:
        controller: Who says so; of two that gather devices at one time the lower name sends.
        sending: It has begun.
        seconds: It will be about so long; 0 from a controller that does not send, but has sent a device to listen.
        missing: What such a device misses.
    """

    controller: str
    sending: bool = False
    seconds: float = 0.0
    missing: tuple[Range, ...] = ()


class Running(msgspec.Struct, frozen=True):
    """What one model of a device is, inside `Reported`.

    Attributes:
        digest, version: Of the active bundle; empty where there is none.
        since: Wall clock seconds of its activation.
        state: State of the model's UpdateMachine, for example ``IDLE`` or ``DOWNLOADING``.
        release: Release counter of the active bundle.
        provider: What really runs it.
    """

    digest: str = ""
    version: str = ""
    since: float = 0.0
    state: str = "IDLE"
    release: int = 0
    provider: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """How the last deployment of a model ended, inside `Reported`.

    Attributes:
        deployment: Digest of the manifest that was deployed.
        version: Its version.
        result: ``succeeded``, ``failed``, ``rolled-back`` or ``refused``.
        error: Class name of the error, for example ``DigestMismatchError``; empty on success.
        message: For people.
        at: Wall clock seconds.
    """

    deployment: str
    version: str
    result: str
    error: str = ""
    message: str = ""
    at: float = 0.0


class Reported(msgspec.Struct, frozen=True):
    """``device/<id>/reported``, retained, signed by the device.

    Attributes:
        device, fleet: Who says so.
        number: Rises with every report, so that an older one can be told.
        at: Wall clock seconds.
        assignment: Version of the assignment that was last accepted; 0 for none.
        models: By model name.
        outcomes: By model name.
        facts: What the device measured of itself.
    """

    device: str
    fleet: str
    number: int
    at: float
    assignment: int
    models: dict[str, Running]
    outcomes: dict[str, Outcome]
    facts: dict[str, Any] = {}


class Presence(msgspec.Struct, frozen=True):
    """``device/<id>/presence``, retained: birth, or the will. A will of an older session is ignored by its number."""

    online: bool
    session: int


class Event(msgspec.Struct, frozen=True):
    """``device/<id>/event``: one thing that happened, signed by the device."""

    device: str
    kind: str
    at: float
    model: str = ""
    error: str = ""
    message: str = ""
    detail: dict[str, Any] = {}


class Telemetry(msgspec.Struct, frozen=True):
    """``device/<id>/telemetry``: counters since the last one."""

    device: str
    at: float
    seconds: float
    counters: dict[str, float]


class Command(msgspec.Struct, frozen=True):
    """``device/<id>/command``: a remote command, signed by the director.

    Attributes:
        device, fleet: For whom; another device refuses it.
        number: Rises per device; a number that was seen is refused.
        expires: Wall clock seconds.
        kind: ``self-test``.
        args: By kind.
    """

    device: str
    fleet: str
    number: int
    expires: float
    kind: str
    args: dict[str, Any] = {}


class Result(msgspec.Struct, frozen=True):
    """``device/<id>/result``: how a command ended, signed by the device."""

    device: str
    number: int
    ok: bool
    message: str = ""
    detail: dict[str, Any] = {}


class Envelope(msgspec.Struct, frozen=True):
    """A signed message: `sig` is Ed25519 over `body`, `key` is the TUF key id of the signer."""

    body: bytes
    key: str
    sig: bytes


class FleetHints(msgspec.Struct, frozen=True):
    """``fleet``, retained: hints for all devices."""

    spread_seconds: float = 0.0
    paused: bool = False


def encode(message: msgspec.Struct) -> bytes:
    """MessagePack bytes of a message."""
    return msgspec.msgpack.encode(message)


def decode(payload: bytes, kind: type[T]) -> T:
    """Parse `payload` as a message of `kind`.

    Raises:
        DataError: it is too large, not MessagePack, or has missing or ill-typed fields.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DataError(f"message of {len(payload)} bytes is larger than the limit of {MAX_PAYLOAD_BYTES}")
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"not a valid {kind.__name__} message: {error}") from error
