"""One change of a TUF repository: read and verify it, sign what changes, write that, and the commit point last.

Every change is a new set of numbered files (consistent snapshots); ``timestamp.json``, written last, is the commit. A
change that dies before it leaves files that nobody reads, which the next change overwrites. What is read back from the
store is verified before it is signed again, so a store that was tampered with cannot have its content signed.
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

# What people sign lives a year. What a machine signs unattended lives a week: that bounds how long a registry can
# hide news from devices, and how long the controller may be away before devices refuse changes.
LIFETIME_DAYS = {Root.type: 365, Targets.type: 365, "publisher": 365, Snapshot.type: 7, Timestamp.type: 7}

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


@runtime_checkable
class Lockable(Protocol):
    """A Store that can keep other writers out for the time of one change."""

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A Store that can refuse a write over what another writer has written meanwhile."""

    def put_checked(self, name: str, data: bytes, expected: bytes | None) -> None:
        """Write where there is still `expected`; None for nothing. Raises UnavailableError."""
        ...


class Committer:
    """Signs and writes changes.

    Args:
        store: Where the repository lies, below ``metadata/``.
        keys: Folder of key files, found by the key ids that the metadata names, and of ``root.json``.
        passphrase: Of the key files, where they are encrypted.
        clock: For expiry dates.
    """

    def __init__(self, store: Store, keys: Path, passphrase: str | None, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._passphrase = passphrase
        self._clock = clock

    def locked(self) -> AbstractContextManager[None]:
        """Keep other writers out, where the store can."""
        return self._store.lock() if isinstance(self._store, Lockable) else nullcontext()

    def load(self) -> TrustState:
        """The present commit; see `load_state`."""
        return load_state(self._store, self._keys / ROOT_FILE)

    def signers(self, role: str, *judges: Root | Targets) -> list[CryptoSigner]:
        """The keys here that `judges` name for `role`; they satisfy the last one.

        Raises:
            NotFoundError: too few of them are here.
        """
        named = [judge.get_delegated_role(role) for judge in judges]
        found = signers_of(self._keys, {keyid for one in named for keyid in one.keyids}, self._passphrase)
        here = sum(signer.public_key.keyid in named[-1].keyids for signer in found)
        if here < named[-1].threshold:
            wanted = f"the key {key_path(self._keys, role)}, which is not here"
            if named[-1].threshold > 1:
                wanted = f"{named[-1].threshold} keys of {role}, {here} of which are in {self._keys}"
            offline = "It belongs offline: bring it for this one change."
            raise NotFoundError(f"this needs {wanted}", advice=offline if role in OFFLINE_ROLES else "Bring it here.")
        return found

    def commit(self, state: TrustState, changed: Mapping[str, Targets], root: Root | None = None) -> None:
        """Sign everything, then write everything.

        A new root counts for readers as soon as it is written. So snapshot, timestamp and targets carry the
        signatures of the old keys and of the new ones, and the root comes after the timestamp: at no write is there a
        registry that cannot be read. Only where an old key is lost must the root come first; a change that dies right
        then is ended by the next `load`.

        Args:
            changed: Targets roles, in their new versions.
            root: The new root, where it changes.

        Raises:
            NotFoundError: a key is not here. UnavailableError: another publisher committed meanwhile.
            StoreError: the store failed.
        """
        judges = [state.root] if root is None else [state.root, root]
        signers = {role: self.signers(role, *judges) for role in (Snapshot.type, Timestamp.type)}
        for role in changed:
            above = judges if role == Targets.type else [changed.get(Targets.type) or state.top()]
            signers[role] = self.signers(role, *above)
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
            raise UnavailableError("another publisher changed the registry meanwhile", advice="Try again.")
        for name, data in [*files.items(), *last]:
            self._put(name, data, state.committed)

    def _put(self, name: str, data: bytes, committed: bytes) -> None:
        """The timestamp replaces the one that was read, every numbered file is new, and neither is another writer's."""
        if name == PENDING_NAME or not isinstance(self._store, Checked):
            self._store.put(METADATA + name, data)
            return
        expected = (committed or None) if name == TIMESTAMP_NAME else None
        self._store.put_checked(METADATA + name, data, expected)

    def _with_root(
        self, old: Root, new: Root, timestamp: bytes, signers: Mapping[str, list[CryptoSigner]]
    ) -> list[tuple[str, bytes]]:
        """The last writes of a change of root, in their order."""
        self.signers(Root.type, new, old)  # both must be satisfied: the old root here, the new one below
        root = (f"{new.version}.root.json", signed_bytes(new, self.signers(Root.type, old, new)))
        judged = {role: old.roles[role] for role in signers if role in old.roles}
        if all(
            sum(signer.public_key.keyid in role.keyids for signer in signers[name]) >= role.threshold
            for name, role in judged.items()
        ):
            return [(TIMESTAMP_NAME, timestamp), root]
        return [(PENDING_NAME, timestamp), root, (TIMESTAMP_NAME, timestamp), (PENDING_NAME, b"")]

    def next(self, targets: Targets, kind: str) -> Targets:
        """Its next version."""
        targets.version += 1
        return self.fresh(targets, kind)

    def fresh(self, signed: S, kind: str) -> S:
        """With the expiry of its kind, counted from now."""
        signed.expires = self.now() + timedelta(days=LIFETIME_DAYS[kind])
        return signed

    def now(self) -> datetime:
        """Whole seconds, as TUF has them."""
        return datetime.fromtimestamp(int(self._clock.wall()), timezone.utc)


def signed_bytes(signed: S, signers: Iterable[CryptoSigner]) -> bytes:
    """The metadata file of `signed`."""
    document = Metadata(signed)
    for signer in signers:
        document.sign(signer, append=True)
    return document.to_bytes()
