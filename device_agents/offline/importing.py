"""Lets an agent follow the assignment of an update file, and waits until its deployments have ended."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from device_agents.agent import Agent
from device_agents.deployment import UpdateRecord, UpdateState
from device_agents.offline.transport import FileTransport
from device_agents.threads import in_thread
from edgekit.bundle.manifest import BLOCK_BYTES, parse_manifest
from edgekit.errors import DigestMismatchError, DiskError, UnavailableError
from edgekit.trust.assignment import Assignment, Entry
from edgekit.update_file import UpdateFile

POLL_SECONDS = 0.05
STALL_SECONDS = 1.0
CURRENT, UNINSTALLED = "current", "uninstalled"
RESUME = "Mend the cause and import the file again; verified blocks are kept."
DELAYED = ("deployment-delayed", "assignment-delayed")


class Imported(msgspec.Struct, frozen=True):
    """The end of one deployment.

    Attributes:
        model, version: The bundle; of a removed model, the version that ran before, empty where none did.
        result: As `messages.Outcome.result`, ``current`` if it ran before, or ``uninstalled`` for a removed model.
        error, message: Why it did not succeed; empty if it did.
    """

    model: str
    version: str
    result: str
    error: str = ""
    message: str = ""


async def follow_file(agent: Agent, transport: FileTransport, file: UpdateFile, payload: bytes) -> list[Imported]:
    """Run an agent until every bundle of an assignment is deployed or refused, and every model to remove is removed.

    Args:
        agent: The agent; it has started, and uses `transport`.
        transport: Answers from the update file.
        file: The same file.
        payload: The assignment.

    Raises:
        VerificationError, UnavailableError: as `Agent.verify` and `check_blobs`; nothing was changed.
        NotFoundError: the file lacks a part of a bundle.
        UnavailableError: a deployment cannot go on, because the disk is full or the file cannot be read any more;
            another import resumes it.
    """
    running = asyncio.create_task(agent.run())
    try:
        await transport.wait_connected(0.0)
        before = dict(agent.states)
        assignment = await agent.verify(payload)
        await in_thread(check_blobs, file, [one for one in assignment.entries.values() if not _runs(before, one)])
        agent.follow(assignment)
        stalled = 0.0
        while not _ended(agent.states, assignment):
            if running.done():
                running.result()
            if transport.fault is not None:
                raise DiskError(f"the import stops: {transport.fault}", advice=RESUME) from transport.fault
            for event in transport.events:
                if event.kind in DELAYED:
                    raise UnavailableError(
                        f"{event.model} waits: {event.error}: {event.message}",
                        advice=RESUME,
                    )
            reason = waiting_reason(agent.states, assignment)
            stalled = stalled + POLL_SECONDS if reason else 0.0
            if stalled >= STALL_SECONDS:  # an earlier import was told the same, and no event repeats it
                raise UnavailableError(reason, advice=RESUME)
            await asyncio.sleep(POLL_SECONDS)
        removed = [Imported(name, _version(before.get(name)), UNINSTALLED) for name in assignment.uninstall]
        ends = [_imported(name, entry, before, agent.states[name]) for name, entry in assignment.entries.items()]
        return [*ends, *removed]
    finally:
        agent.stop()
        await asyncio.gather(running, return_exceptions=True)


def check_blobs(file: UpdateFile, entries: Iterable[Entry]) -> None:
    """Hash every part of some bundles, so that a damaged copy is no failed deployment, which would not be tried again.

    Raises:
        DigestMismatchError: a part differs from what is signed.
        NotFoundError: a part is missing.
        ManifestError: a manifest cannot be read.
    """
    for entry in entries:
        manifest = parse_manifest(b"".join(_checked_blocks(file, entry.sha256, f"manifest {entry.path}")))
        for part in manifest.files:
            for _ in _checked_blocks(file, part.sha256, f"{part.path} of {entry.path}"):
                pass


def _checked_blocks(file: UpdateFile, digest: str, name: str) -> Iterator[bytes]:
    found = hashlib.sha256()
    for index in range(-(-file.blob_bytes(digest) // BLOCK_BYTES)):
        block = file.block(digest, index)
        found.update(block)
        yield block
    if found.hexdigest() != digest:
        raise DigestMismatchError(name, expected=digest, found=found.hexdigest())


def waiting_reason(states: Mapping[str, UpdateRecord], assignment: Assignment) -> str:
    """Why a deployment of an assignment rests until another attempt; empty where none does."""
    for name, entry in assignment.entries.items():
        state = states.get(name)
        pending = state.deployment if state is not None and state.name is UpdateState.IDLE else None
        if state is not None and pending is not None and pending.digest == entry.sha256 and state.note:
            return f"{name} waits: {state.note}"
    return ""


def _ended(states: Mapping[str, UpdateRecord], assignment: Assignment) -> bool:
    deployed = all(_rests(states.get(name), entry) for name, entry in assignment.entries.items())
    return deployed and not states.keys() & set(assignment.uninstall)


def _version(state: UpdateRecord | None) -> str:
    return state.active.version if state is not None and state.active is not None else ""


def _rests(state: UpdateRecord | None, entry: Entry) -> bool:
    if state is None or state.name is not UpdateState.IDLE or state.deployment is not None:
        return False
    runs = state.active is not None and state.active.digest == entry.sha256
    return runs or (state.outcome is not None and state.outcome.deployment == entry.sha256)


def _runs(states: Mapping[str, UpdateRecord], entry: Entry) -> bool:
    state = states.get(entry.name)
    return state is not None and state.active is not None and state.active.digest == entry.sha256


def _imported(name: str, entry: Entry, before: Mapping[str, UpdateRecord], state: UpdateRecord) -> Imported:
    if _runs(before, entry):
        return Imported(name, entry.version, CURRENT)
    outcome = state.outcome
    assert outcome is not None  # it rests, so it has ended
    return Imported(name, entry.version, outcome.result, outcome.error, outcome.message)
