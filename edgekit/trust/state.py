"""The current metadata of a TUF repository, read from its store and verified before a change signs it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edgekit.errors import NotFoundError, SignatureError
from edgekit.protocols import Store

METADATA = "metadata/"
TIMESTAMP_NAME = "timestamp.json"
PENDING_NAME = "pending.json"  # the timestamp of a change of root that is not complete; empty otherwise
# A custom field of the timestamp role: the time of signing, wall clock seconds.
CUSTOM, SIGNED_AT = "custom", "signed_at"

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


def publisher_role(name: str) -> str:
    """Name of the role that publishes model `name`; its key file has the same name."""
    return f"publisher-{name}"


def signed_at(timestamp: Timestamp) -> int:
    """When the timestamp was signed, in wall clock seconds; 0 if it does not say, or names a time after its expiry."""
    custom = timestamp.unrecognized_fields.get(CUSTOM)
    found = custom.get(SIGNED_AT) if isinstance(custom, dict) else None
    return found if isinstance(found, int) and 0 <= found <= timestamp.expires.timestamp() else 0


class TrustState:
    """Verified metadata of one commit.

    Attributes:
        root, snapshot, timestamp: The trusted roles.
        committed: Bytes of the current timestamp file; empty before the first commit.
    """

    def __init__(self, store: Store, root: Root, snapshot: Snapshot, timestamp: Timestamp, committed: bytes) -> None:
        self._store = store
        self.root = root
        self.snapshot = snapshot
        self.timestamp = timestamp
        self.committed = committed

    def top(self) -> Targets:
        """The top-level targets role, which delegates to the publishers and the director."""
        return self._targets(self.root, Targets.type)

    def models(self) -> list[str]:
        """Names of the models that have a publisher."""
        return _models(self.top())

    def publisher(self, name: str) -> Targets:
        """The role that publishes model `name`.

        Raises:
            NotFoundError: the model has no publisher.
        """
        top = self.top()
        if name not in _models(top):
            raise NotFoundError(
                f"model {name!r} has no publisher in this registry",
                advice="The first publish of a model needs the offline targets key in the key folder.",
            )
        return self._targets(top, publisher_role(name))

    def _targets(self, delegator: Root | Targets, role: str) -> Targets:
        version = self.snapshot.meta[f"{role}.json"].version
        data = self._store.get(f"{METADATA}{version}.{role}.json")
        return _verified(data, Targets, delegator, role, version)


def load_state(store: Store, root_file: Path) -> TrustState:
    """Load and verify the current commit, starting from a trusted root.

    Expiry is not checked, because expired metadata must still be renewable.

    Args:
        store: The store that holds the repository.
        root_file: File with the trusted root.

    Raises:
        NotFoundError: there is no such file, or no repository.
        SignatureError: the store holds metadata that the root does not trust.
        StoreError: the store failed.
    """
    root = _load_root(store, root_file)
    try:
        committed = store.get(METADATA + TIMESTAMP_NAME)
    except NotFoundError as error:
        raise NotFoundError("there is no registry here", advice="Run: edgekit registry init") from error
    try:
        return _state(store, root, committed)
    except SignatureError:
        # A change of keys may have been interrupted between the new root and its timestamp: complete it.
        pending = METADATA + PENDING_NAME
        if not store.exists(pending) or not (committed := store.get(pending)):
            raise
        state = _state(store, root, committed)
        store.put(METADATA + TIMESTAMP_NAME, committed)
        store.put(pending, b"")
        return state


def _state(store: Store, root: Root, committed: bytes) -> TrustState:
    timestamp = _verified(committed, Timestamp, root, Timestamp.type)
    version = timestamp.snapshot_meta.version
    data = store.get(f"{METADATA}{version}.snapshot.json")
    snapshot = _verified(data, Snapshot, root, Snapshot.type, version)
    state = TrustState(store, root, snapshot, timestamp, committed)
    state.top()
    return state


def _load_root(store: Store, root_file: Path) -> Root:
    try:
        data = root_file.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"the trusted root {root_file} cannot be read: {error}", advice="Run: edgekit registry init"
        ) from error
    root = _verified(data, Root, None, Root.type)
    while store.exists(name := f"{METADATA}{root.version + 1}.root.json"):
        data, version = store.get(name), root.version + 1
        _verified(data, Root, root, Root.type, version)
        root = _verified(data, Root, None, Root.type, version)
    return root


def _verified(data: bytes, kind: type[S], delegator: Root | Targets | None, role: str, version: int | None = None) -> S:
    """Parse metadata and verify it with `delegator`; None verifies a root with its own keys."""
    try:
        document: Metadata[Any] = Metadata.from_bytes(data)
        signed = document.signed
        if not isinstance(signed, kind) or version not in (None, signed.version):
            raise SignatureError(
                f"the registry's {role} is a {type(signed).__name__} of version {signed.version}, "
                f"expected {kind.__name__} {version or ''}"
            )
        verifier = delegator or signed
        assert isinstance(verifier, Root | Targets)
        verifier.verify_delegate(role, document.signed_bytes, document.signatures)
    except RepositoryError as error:
        raise SignatureError(
            f"the registry's {role} is not trusted: {error}",
            advice="Either the key folder belongs to another registry, or somebody changed this registry.",
        ) from error
    return signed


def _models(top: Targets) -> list[str]:
    prefix = publisher_role("")
    roles = top.delegations.roles if top.delegations else None
    return sorted(role.removeprefix(prefix) for role in roles or {} if role.startswith(prefix))
