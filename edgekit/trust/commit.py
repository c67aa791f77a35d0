"""One change of a TUF repository: read and verify it, sign the changed files, write them, and commit.

Every change writes a new set of numbered files (consistent snapshots); writing ``timestamp.json`` last is the commit. A
change that is interrupted before it leaves files that no reader uses; the next change overwrites them. Metadata from
the store is verified before it is signed again, so a tampered store does not get its content signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgekit.errors import NotFoundError, UnavailableError
from edgekit.protocols import Clock, Store
from edgekit.trust.keys import key_path, signers_of
from edgekit.trust.state import CUSTOM, METADATA, PENDING_NAME, SIGNED_AT, TIMESTAMP_NAME, TrustState, load_state

ROOT_FILE = "root.json"
OFFLINE_ROLES = (Root.type, Targets.type)

# Roles that people sign live a year. Roles that a controller signs live a week: that limits how long a registry can
# hide new versions from devices, and how long the controller may be down before devices refuse changes.
LIFETIME_DAYS = {Root.type: 365, Targets.type: 365, "publisher": 365, Snapshot.type: 7, Timestamp.type: 7}

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


@runtime_checkable
class Lockable(Protocol):
    """A Store that can exclude other writers during one change."""

    def lock(self) -> AbstractContextManager[None]:
        """Lock the store."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A Store that can refuse to overwrite a concurrent change."""

    def put_checked(self, name: str, data: bytes, expected: bytes | None) -> None:
        """Write if the object still has the content `expected` (None: is absent). Raises UnavailableError."""
        ...


class Committer:
    """Signs and writes changes of a repository.

    Args:
        store: The store that holds the repository, below ``metadata/``.
        keys: Folder with the key files and ``root.json``; keys are found by the key ids in the metadata.
        passphrase: Passphrase of the key files; None if they are not encrypted.
        clock: Time, for expiry dates.
    """

    def __init__(self, store: Store, keys: Path, passphrase: str | None, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._passphrase = passphrase
        self._clock = clock

    def locked(self) -> AbstractContextManager[None]:
        """Exclude other writers, if the store supports it."""
        return self._store.lock() if isinstance(self._store, Lockable) else nullcontext()

    def load(self) -> TrustState:
        """Load and verify the current commit; see `load_state`."""
        return load_state(self._store, self._keys / ROOT_FILE)

    def signers(self, role: str, *delegators: Root | Targets) -> list[CryptoSigner]:
        """The keys in the key folder that `delegators` name for `role`; enough of them for the last delegator.

        Raises:
            NotFoundError: the key folder has too few of them.
        """
        named = [delegator.get_delegated_role(role) for delegator in delegators]
        signers = signers_of(self._keys, {keyid for one in named for keyid in one.keyids}, self._passphrase)
        here = sum(signer.public_key.keyid in named[-1].keyids for signer in signers)
        if here < named[-1].threshold:
            needed = f"the key {key_path(self._keys, role)}, which is not here"
            if named[-1].threshold > 1:
                needed = f"{named[-1].threshold} keys of {role}, {here} of which are in {self._keys}"
            advice = f"Copy it to {self._keys}."
            if role in OFFLINE_ROLES:
                advice = f"It is an offline key: copy it to {self._keys} for this change and remove it afterwards."
            raise NotFoundError(f"this needs {needed}", advice=advice)
        return signers

    def commit(self, state: TrustState, changed: Mapping[str, Targets], root: Root | None = None) -> None:
        """Sign all changed roles, then write them.

        Readers use a new root as soon as it is written. So snapshot, timestamp and targets carry the signatures of the
        old and of the new keys, and the root is written after the timestamp: the registry can be read after each write.
        Only if an old key is lost, the root must be written first; if the change is interrupted right then, the next
        `load` completes it.

        Args:
            state: The current commit.
            changed: Targets roles in their new versions, by name.
            root: The new root; None if it does not change.

        Raises:
            NotFoundError: a key is not here.
            UnavailableError: another publisher has committed since `state` was loaded.
            StoreError: the store failed.
        """
        roots = [state.root] if root is None else [state.root, root]
        signers = {role: self.signers(role, *roots) for role in (Snapshot.type, Timestamp.type)}
        for role in changed:
            delegators = roots if role == Targets.type else [changed.get(Targets.type) or state.top()]
            signers[role] = self.signers(role, *delegators)
        files = {
            f"{targets.version}.{role}.json": signed_bytes(targets, signers[role]) for role, targets in changed.items()
        }
        state.snapshot.meta.update({f"{role}.json": MetaFile(targets.version) for role, targets in changed.items()})
        if state.committed:
            state.snapshot.version += 1
            state.timestamp.version += 1
        snapshot = self.fresh(state.snapshot, Snapshot.type)
        files[f"{snapshot.version}.snapshot.json"] = signed_bytes(snapshot, signers[Snapshot.type])
        state.timestamp.snapshot_meta = MetaFile(snapshot.version)
        state.timestamp.unrecognized_fields[CUSTOM] = {SIGNED_AT: int(self.now().timestamp())}
        timestamp = signed_bytes(self.fresh(state.timestamp, Timestamp.type), signers[Timestamp.type])
        last = [(TIMESTAMP_NAME, timestamp)]
        if root is not None:
            last = self._with_root(state.root, root, timestamp, signers)
        if state.committed and self._store.get(METADATA + TIMESTAMP_NAME) != state.committed:
            raise UnavailableError("another publisher changed the registry at the same time", advice="Try again.")
        for name, data in [*files.items(), *last]:
            self._put(name, data, state.committed)

    def _put(self, name: str, data: bytes, committed: bytes) -> None:
        """Write one file. The timestamp must replace the one that was read; every numbered file must be new."""
        if name == PENDING_NAME or not isinstance(self._store, Checked):
            self._store.put(METADATA + name, data)
            return
        expected = (committed or None) if name == TIMESTAMP_NAME else None
        self._store.put_checked(METADATA + name, data, expected)

    def _with_root(
        self, old: Root, new: Root, timestamp: bytes, signers: Mapping[str, list[CryptoSigner]]
    ) -> list[tuple[str, bytes]]:
        """The last files that a change of root writes, in this order."""
        self.signers(Root.type, new, old)  # checks the threshold of the old root; the next line checks the new one
        root = (f"{new.version}.root.json", signed_bytes(new, self.signers(Root.type, old, new)))
        old_roles = {role: old.roles[role] for role in signers if role in old.roles}
        if all(
            sum(signer.public_key.keyid in role.keyids for signer in signers[name]) >= role.threshold
            for name, role in old_roles.items()
        ):
            return [(TIMESTAMP_NAME, timestamp), root]
        return [(PENDING_NAME, timestamp), root, (TIMESTAMP_NAME, timestamp), (PENDING_NAME, b"")]

    def next(self, targets: Targets, kind: str) -> Targets:
        """Raise the version and renew the expiry."""
        targets.version += 1
        return self.fresh(targets, kind)

    def fresh(self, signed: S, kind: str) -> S:
        """Set the expiry of a role of this kind, counted from now."""
        signed.expires = self.now() + timedelta(days=LIFETIME_DAYS[kind])
        return signed

    def now(self) -> datetime:
        """The time in whole seconds, as TUF uses it."""
        return datetime.fromtimestamp(int(self._clock.wall()), timezone.utc)


def signed_bytes(signed: S, signers: Iterable[CryptoSigner]) -> bytes:
    """The metadata file of `signed`, with one signature of each signer."""
    document = Metadata(signed)
    for signer in signers:
        document.sign(signer, append=True)
    return document.to_bytes()
