"""Wire messages as frozen values; MessagePack maps on the wire. Unknown keys are ignored; ids are in the payload.

All messages over MQTT are here, except those of new devices and certificates (`joining_messages.py`), parts of samples
(`sample_messages.py`) and the assignment on ``desired``, which is a TUF document (`trust/`).
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

from typing import Any, TypeVar

import msgspec

from edgekit.errors import DataError
from edgekit.mqtt.joining_messages import CertificateRequest, ClaimAnswer, ClaimMessage, ClaimProof, ClaimRequest
from edgekit.mqtt.sample_messages import SampleHead, SamplePart
from edgekit.sketches.sketch import Sketch

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_SPREAD_SECONDS = 86_400.0  # a forged hint delays no device for longer
MAX_RECONNECT_SECONDS = 300.0  # the same
MAX_BROADCAST_BLOCKS = 3  # of 64 KiB, so that they fit one payload

T = TypeVar("T")


class Range(msgspec.Struct, frozen=True, array_like=True):
    """Blocks from `first` to `last`, both included."""

    first: int
    last: int


class BlocksRequest(msgspec.Struct, frozen=True):
    """``request/blocks/<id>``: a request for blocks of a blob.

    Attributes:
        id: Id of the request.
        digest: Digest of the blob.
        ranges: Requested blocks.
        credit: Most blocks to send.
        left: Blocks of the blob that will still be missing after these; 0 ends a transfer; -1 where unknown.
        missing: All missing blocks, from a device that can listen to a broadcast; empty from one that cannot.
        urls: The device prefers URLs to blocks, where the controller knows some.
        part_bytes: Most bytes of a block that an answer may have; 0 from a device that takes whole blocks only.
    """

    id: str
    digest: str
    ranges: tuple[Range, ...]
    credit: int
    left: int = -1
    missing: tuple[Range, ...] = ()
    urls: bool = False
    part_bytes: int = 0


class MetadataRequest(msgspec.Struct, frozen=True):
    """``request/metadata/<id>``: a request for a file of the TUF repository, for example ``timestamp.json``.

    Attributes:
        id: Id of the request.
        name: Name of the file.
        have: Versions by role that the device has, 0 for a role that it needs and does not have: with the timestamp,
            the answer brings newer files of these roles. Empty from a device that needs one file.
        part_bytes: Most bytes of files that a message of the answer may have; 0 for as many as the broker accepts.
    """

    id: str
    name: str
    have: dict[str, int] = {}
    part_bytes: int = 0


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A part of a block, inside `Answer`: where it begins in the block, and the length of the block, in bytes."""

    offset: int
    size: int


class Answer(msgspec.Struct, frozen=True):
    """``answer/<id>``: one block or a part of one, one part of a metadata file, or an error.

    Attributes:
        id: Id of the request.
        index: Index of the block or part.
        total: Number of the blob's blocks or the file's parts.
        data: The bytes; empty with an error.
        error: ``""``, ``not-found``, ``busy``, ``unknown-kind``, ``bad-request`` or ``too-large`` (for the broker).
        message: The error in words.
        retry_seconds: With ``busy``: when to send the request again; 0 where unknown.
        urls: URLs that serve ranges of the blob over HTTP. They are unsigned hints, and no block comes with them.
        wave: With ``busy``: the blob's blocks will be broadcast on ``wave/<digest>``; request the rest afterwards.
        part: Which part of the block it has, where it has not the whole one.
        files: With the timestamp: newer files of roles that the request names, as far as they fit one message.
        absent: With the timestamp: the next version of the root, where there is none.
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
    part: Part | msgspec.UnsetType = msgspec.UNSET
    files: dict[str, bytes] = {}
    absent: tuple[str, ...] = ()


class BroadcastBlocks(msgspec.Struct, frozen=True):
    """``wave/<digest>``: up to MAX_BROADCAST_BLOCKS consecutive blocks of a blob from `first` on; empty at the end."""

    first: int
    data: bytes


class BroadcastClaim(msgspec.Struct, frozen=True):
    """``wave/<digest>/claim``: a message between controllers, so that only one of them broadcasts a blob.

    Attributes:
        controller: Name of the sender. Of two controllers that claim at the same time, the lower name broadcasts.
        sending: True where the broadcast has begun.
        seconds: Expected duration; 0 from a controller that does not broadcast, but has told a device to listen.
        missing: Blocks that such a device misses.
    """

    controller: str
    sending: bool = False
    seconds: float = 0.0
    missing: tuple[Range, ...] = ()


class Waiting(msgspec.Struct, frozen=True):
    """Why the device waits on purpose with the deployment of a model, inside `Running`.

    Attributes:
        reason: A word: ``quiet-hours``, ``metered``, ``consent``, ``declined``, ``window``, ``disk``, ``spool`` or
            ``paused``; others may come.
        since: Wall clock seconds of the device.
        digest: Digest of the bundle that waits.
    """

    reason: str
    since: float = 0.0
    digest: str = ""


LATENCY_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Behaviour(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one bundle has behaved since the agent started: rising counts, inside `Running`.

    Attributes:
        requests: Inference requests, those included that failed.
        errors: Requests that failed.
        local: Requests that the local model answered; the cloud tier was not needed.
        outcomes: Answers that the application judged.
        good: Those that it judged to be good.
        slower: Answers that took longer than each of LATENCY_BOUNDS_MS; empty from devices that do not say.
    """

    requests: int = 0
    errors: int = 0
    local: int = 0
    outcomes: int = 0
    good: int = 0
    slower: tuple[int, ...] = ()


SHADOW_BYTES = 64  # most bytes of an encoded Shadow
SHADOW_DIGITS = 12  # of a digest
SHADOW_COMPLETE, SHADOW_TIME = "complete", "time"


class Shadow(msgspec.Struct, frozen=True, array_like=True):
    """The comparison of a bundle with the active one on live inputs, inside `Running`; at most SHADOW_BYTES, no inputs.

    Attributes:
        candidate: The first SHADOW_DIGITS digits of the bundle's digest.
        compared: Inputs that both have answered.
        differed: Of these, those whose decision changed, or whose answers are further apart than the output's limit.
        failed: Of these, those that the bundle could not answer.
        dropped: Inputs that were left out, because the device was busy.
        ended: Empty while it goes on; ``complete``, ``time`` (its time is over), or why the device cannot compare:
            ``no-model``, ``memory``, ``stateful``, ``inputs``, ``load``; others may come.
        run: Random number of the comparison, so that a report of an earlier one is recognized.
    """

    candidate: str
    compared: int = 0
    differed: int = 0
    failed: int = 0
    dropped: int = 0
    ended: str = ""
    run: int = 0


class Running(msgspec.Struct, frozen=True):
    """The state of one model of a device, inside `Reported`.

    Attributes:
        digest, version: Digest and version of the active bundle; empty where there is none.
        since: Wall clock seconds of its activation.
        state: State of the model's UpdateMachine, for example ``IDLE`` or ``DOWNLOADING``.
        release: Release counter of the active bundle.
        provider: Delegate or execution provider in use.
        waiting: Why its deployment waits on purpose; None if it does not.
        highest: The highest version that was committed, or that of a later downgrade; lower ones are refused. Empty
            from devices that do not say.
        behaviour: How the bundles behaved that ran last, by digest; the newest is the last.
        shadow: The last comparison of a bundle with the active one; None where there was none.
    """

    digest: str = ""
    version: str = ""
    since: float = 0.0
    state: str = "IDLE"
    release: int = 0
    provider: str = ""
    waiting: Waiting | None = None
    highest: str = ""
    behaviour: dict[str, Behaviour] = {}
    shadow: Shadow | None = None


class Outcome(msgspec.Struct, frozen=True):
    """How the last deployment of a model ended, inside `Reported`.

    Attributes:
        deployment: Digest of the deployed manifest.
        version: Version of the bundle.
        result: ``succeeded``, ``failed``, ``rolled-back`` or ``refused``.
        error: Class name of the error, for example ``DigestMismatchError``; empty on success.
        message: The error in words.
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
        device, fleet: Names of the sender.
        number: Rises with every report, so that an older report can be recognized. A device that lost its disk learns
            its last number from its retained report, or from the controller's Answer OWN_REPORT.
        at: Wall clock seconds.
        assignment: Version of the last accepted assignment; 0 for none.
        models: States by model name.
        outcomes: Outcomes of the last deployments by model name.
        facts: Facts that the device measured of itself.
        session: Number of the session, as in Presence; 0 from devices that do not say.
        run: Random id of this run of the agent: a run that has ended never comes back. Empty from devices that do not
            say.
        command: The highest accepted command number; -1 from devices that do not say.
        key: The device's Ed25519 public key (32 bytes), for a controller that has lost its database; empty from
            devices that do not say.
    """

    device: str
    fleet: str
    number: int
    at: float
    assignment: int
    models: dict[str, Running]
    outcomes: dict[str, Outcome]
    facts: dict[str, Any] = {}
    session: int = 0
    run: str = ""
    command: int = -1
    key: bytes = b""


class Presence(msgspec.Struct, frozen=True):
    """``device/<id>/presence``, retained: online at the start of a session, offline as its will.

    `session` numbers the sessions, so that the will of an older session can be ignored.
    """

    online: bool
    session: int


class Event(msgspec.Struct, frozen=True):
    """``device/<id>/event``: one event on the device, signed by the device."""

    device: str
    kind: str
    at: float
    model: str = ""
    error: str = ""
    message: str = ""
    detail: dict[str, Any] = {}


class Telemetry(msgspec.Struct, frozen=True):
    """``device/<id>/telemetry``: increases of counters since the last message, over `seconds`.

    A lost message loses what it counts and nothing else.

    Attributes:
        device: Name of the sender.
        at: Wall clock seconds.
        seconds: Length of the window.
        counters: Increases by name.
        sketches: Sketches of the values of the window, by name (`edgekit.sketches.signals`).
        session, number: The session of the agent and a number that rises in it, so that nothing is counted twice; 0
            from devices that send no sketches.
    """

    device: str
    at: float
    seconds: float
    counters: dict[str, float]
    sketches: dict[str, Sketch] = {}
    session: int = 0
    number: int = 0


class Command(msgspec.Struct, frozen=True):
    """``device/<id>/command``: a remote command, signed by the director.

    Attributes:
        device, fleet: The receiver; another device refuses the command.
        number: Rises for each device; a device refuses a number that is not above the last one.
        expires: Wall clock seconds.
        kind, args: The command and its arguments, as `edgekit.mqtt.command_arguments` defines them.
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


TOO_LARGE = "too-large"
# Ids of an Answer that no request asked for.
NOTICE = "notice"  # its data is a Notice, signed by the director
OWN_REPORT = "report"  # its data is the last stored report of the receiver, which has signed it
NUMBERS, REMOVED, QUARANTINED = "numbers", "removed", "quarantined"


class Notice(msgspec.Struct, frozen=True):
    """``answer/<id>`` with the id NOTICE: what the controller tells a device unasked, signed by the director.

    Attributes:
        device, fleet: The receiver; another device ignores it.
        kind: ``numbers`` (reports were dropped, because their numbers are below those in the database, which has no
            signed report), ``removed`` or ``quarantined``.
        at: Wall clock seconds of the controller.
        message: The notice in words.
        report, session, command: With ``numbers``: the highest numbers in the database.
    """

    device: str
    fleet: str
    kind: str
    at: float
    message: str = ""
    report: int = 0
    session: int = 0
    command: int = 0


class Envelope(msgspec.Struct, frozen=True):
    """A signed message: `sig` is the Ed25519 signature of `body`, `key` the TUF key id of the signer."""

    body: bytes
    key: str
    sig: bytes


class FleetHints(msgspec.Struct, frozen=True):
    """``fleet``, retained: hints for all devices, which are not signed.

    Attributes:
        spread_seconds: Each device waits for a random part of this time before a change; at most MAX_SPREAD_SECONDS.
        paused: No device begins a change.
        reconnect_seconds: After the end of a connection each device waits for a random part of this time before it
            connects again; 0 to MAX_RECONNECT_SECONDS.
    """

    spread_seconds: float = 0.0
    paused: bool = False
    reconnect_seconds: float = 0.0


# Decoders are built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_MESSAGES = (
    BlocksRequest, MetadataRequest, Answer, BroadcastBlocks, BroadcastClaim, Reported, Presence, Event, Telemetry,
    Command, Result, Notice, Envelope, FleetHints, SampleHead, SamplePart,
    CertificateRequest, ClaimMessage, ClaimRequest, ClaimProof, ClaimAnswer,
)  # fmt: skip
_DECODERS: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(kind) for kind in _MESSAGES}


def encode(message: msgspec.Struct) -> bytes:
    """MessagePack bytes of a message."""
    return msgspec.msgpack.encode(message)


def decode(payload: bytes, kind: type[T]) -> T:
    """Parse `payload` as a message of `kind`.

    Raises:
        DataError: `payload` is too large, is not MessagePack, or has missing or ill-typed fields.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DataError(f"message of {len(payload)} bytes is larger than the limit of {MAX_PAYLOAD_BYTES}")
    try:
        decoder: msgspec.msgpack.Decoder[T] | None = _DECODERS.get(kind)
        return decoder.decode(payload) if decoder else msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"not a valid {kind.__name__} message: {error}") from error
