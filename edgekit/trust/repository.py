"""The publish side of TUF: makes the repository in a store, delegates one role per model, publishes, keeps it fresh.

Every change is a new set of numbered files (consistent snapshots); ``timestamp.json``, written last, is the commit. A
change that dies before it leaves files that nobody reads, which the next change overwrites. What is read back from the
store is verified before it is signed again, so a store that was tampered with cannot have its content signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgekit.clock import SystemClock
from edgekit.errors import ManifestError, NotFoundError, SettingsError, UnavailableError
from edgekit.manifest import NAME, parse_manifest, target_path
from edgekit.protocols import Clock, Store
from edgekit.trust.assignment import DIRECTOR
from edgekit.trust.keys import generate_key, key_path, load_signer
from edgekit.trust.state import METADATA, TIMESTAMP_NAME, State, load_state, publisher_role

ROOT_FILE = "root.json"
OFFLINE_ROLES = (Root.type, Targets.type)
ONLINE_ROLES = (Snapshot.type, Timestamp.type, DIRECTOR)

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


class Repository:
    """One TUF repository, as those see it who hold its keys.

    Args:
        store: Where it lies, below ``metadata/``. Where the store cannot lock, one publisher at a time is the
            caller's duty; a change that finds another's commit gives up.
        keys: Folder of key files, one per role (``snapshot.key``), and of ``root.json``, the root that devices are
            born with. A key that a change does not need may be absent.
        passphrase: Of the key files, where they are encrypted.
        clock: For expiry dates.
    """

    def __init__(self, store: Store, keys: Path, passphrase: str | None = None, *, clock: Clock | None = None) -> None:
        self._store = store
        self._keys = keys
        self._passphrase = passphrase
        self._clock = clock or SystemClock()

    def create(self, *, root_keys: int = 1, root_threshold: int = 1) -> bytes:
        """Make all keys and an empty repository.

        Args:
            root_keys: How many root keys to make; more than one are called ``root-1`` and so on.
            root_threshold: How many of them must sign a root.

        Returns:
            The trusted first root, which is also written to ``root.json`` beside the keys.

        Raises:
            SettingsError: there is already a repository or a key, or the threshold cannot be reached.
            StoreError: the store failed; there is no repository then, but there are keys.
        """
        if not 1 <= root_threshold <= root_keys:
            raise SettingsError(
                f"root threshold is {root_threshold}, expected 1 to {root_keys} (the number of root keys)"
            )
        roots = [Root.type] if root_keys == 1 else [f"{Root.type}-{i + 1}" for i in range(root_keys)]
        with self._locked():
            self._refuse_second(roots)
            signers = {
                role: generate_key(key_path(self._keys, role), self._passphrase)
                for role in (*roots, Targets.type, *ONLINE_ROLES)
            }
            root = Root(version=1, expires=self._expiry(Root.type), consistent_snapshot=True)
            for role in (Targets.type, Snapshot.type, Timestamp.type):
                root.add_key(signers[role].public_key, role)
            for name in roots:
                root.add_key(signers[name].public_key, Root.type)
            root.roles[Root.type].threshold = root_threshold
            data = _signed(root, *(signers[name] for name in roots))
            (self._keys / ROOT_FILE).write_bytes(data)
            self._store.put(f"{METADATA}1.root.json", data)
            self._commit(
                State(self._store, root, Snapshot(), Timestamp(), b""), {Targets.type: self._first_targets(signers)}
            )
            return data

    def models(self) -> list[str]:
        """Names of the models that have a publisher.

        Raises:
            NotFoundError, SignatureError: there is no repository, or not one of these keys' root.
        """
        return self._load().models()

    def add_model(self, name: str) -> None:
        """Make a publisher key for model `name` and delegate its targets to it; needs the offline targets key.

        Raises:
            NotFoundError: the targets key is not here.
            ManifestError: `name` is no model name, or has a publisher already.
        """
        if not NAME.fullmatch(name):
            raise ManifestError(f"model name {name!r} is not of the form {NAME.pattern}")
        role = publisher_role(name)
        with self._locked():
            state = self._load()
            top = state.top()
            if name in state.models():
                raise ManifestError(f"model {name!r} has a publisher already")
            self._signer(Targets.type)
            # A change that died after making the key left it here; nothing trusts it yet, so it may serve.
            path = key_path(self._keys, role)
            publisher = self._signer(role) if path.exists() else generate_key(path, self._passphrase)
            delegated = DelegatedRole(role, [], threshold=1, terminating=True, paths=[f"models/{name}/*/*/*"])
            assert top.delegations is not None
            assert top.delegations.roles is not None
            top.delegations.roles[role] = delegated
            top.add_key(publisher.public_key, role)
            self._commit(
                state, {Targets.type: self._next(top, Targets.type), role: self._fresh(Targets(), "publisher")}
            )

    def publish(self, manifest: bytes, custom: Mapping[str, str | int | bool] | None = None) -> TargetFile:
        """Name a bundle's manifest in the catalogue; the same content again changes nothing.

        Args:
            manifest: Its canonical bytes; the blobs are already in the store.
            custom: More signed fields for the target.

        Returns:
            The target; its custom fields hold name, target, version and the release counter.

        Raises:
            ManifestError: not a valid manifest, or that version is published with other content.
            NotFoundError: the model has no publisher, or a key is not here.
        """
        parsed = parse_manifest(manifest)
        path = target_path(parsed.name, parsed.target, parsed.version)
        with self._locked():
            state = self._load()
            publisher = state.publisher(parsed.name)
            target = TargetFile.from_data(path, manifest, ["sha256"])
            known = publisher.targets.get(path)
            if known is not None:
                if known.hashes != target.hashes:
                    raise ManifestError(
                        f"{path} is already published with other content (digest {known.hashes['sha256'][:12]})",
                        advice="A published version never changes; convert with a higher --version.",
                    )
                return known
            release = 1 + max((_release(file) for file in publisher.targets.values()), default=0)
            identity = {"name": parsed.name, "target": parsed.target, "version": parsed.version, "release": release}
            target.unrecognized_fields["custom"] = {**(custom or {}), **identity}
            publisher.targets[path] = target
            self._commit(state, {publisher_role(parsed.name): self._next(publisher, "publisher")})
            return target

    def mark(self, name: str, version: str, *, retired: bool | None = None, channel: str | None = None) -> list[str]:
        """Set signed fields on every target of a version; its content and release stay.

        Args:
            retired: It is not chosen any more; None leaves it as it is.
            channel: What it is promoted to, for example ``stable``; None leaves it as it is.

        Returns:
            The paths that were changed.

        Raises:
            NotFoundError: there is no such model or version, or a key is not here.
            ManifestError: `channel` is no name.
        """
        if channel is not None and not NAME.fullmatch(channel):
            raise ManifestError(f"channel {channel!r} is not of the form {NAME.pattern}")
        with self._locked():
            state = self._load()
            publisher = state.publisher(name)
            found = [file for file in publisher.targets.values() if file.custom.get("version") == version]
            if not found:
                raise NotFoundError(f"model {name!r} has no version {version!r}")
            for file in found:
                file.custom.update({k: v for k, v in (("retired", retired), ("channel", channel)) if v is not None})
            self._commit(state, {publisher_role(name): self._next(publisher, "publisher")})
            return [file.path for file in found]

    def refresh_timestamp(self, *, force: bool = False) -> bool:
        """Sign snapshot and timestamp anew once half of their life is over; needs the online keys only.

        Returns:
            True when they were signed anew.

        Raises:
            NotFoundError: there is no repository, or a key is not here.
            StoreError, SignatureError: as `publish`.
        """
        with self._locked():
            state = self._load()
            left = min(state.snapshot.expires, state.timestamp.expires) - self._now()
            if not force and left > timedelta(days=LIFETIME_DAYS[Timestamp.type]) / 2:
                return False
            self._commit(state, {})
            return True

    def _commit(self, state: State, changed: Mapping[str, Targets]) -> None:
        """Sign everything, then write everything, the timestamp last."""
        files = {}
        for role, targets in changed.items():
            files[f"{targets.version}.{role}.json"] = _signed(targets, self._signer(role))
            state.snapshot.meta[f"{role}.json"] = MetaFile(targets.version)
        if state.committed:
            state.snapshot.version += 1
            state.timestamp.version += 1
        snapshot = self._fresh(state.snapshot, Snapshot.type)
        files[f"{snapshot.version}.snapshot.json"] = _signed(snapshot, self._signer(Snapshot.type))
        state.timestamp.snapshot_meta = MetaFile(snapshot.version)
        timestamp = _signed(self._fresh(state.timestamp, Timestamp.type), self._signer(Timestamp.type))
        if state.committed and self._store.get(METADATA + TIMESTAMP_NAME) != state.committed:
            raise UnavailableError("another publisher changed the registry meanwhile", advice="Try again.")
        for name, data in files.items():
            self._store.put(METADATA + name, data)
        self._store.put(METADATA + TIMESTAMP_NAME, timestamp)

    def _load(self) -> State:
        return load_state(self._store, self._keys / ROOT_FILE)

    def _first_targets(self, signers: Mapping[str, CryptoSigner]) -> Targets:
        # The director names no target itself, so no client ever asks for a director.json: there is none.
        director = DelegatedRole(DIRECTOR, [], threshold=1, terminating=True, paths=[])
        targets = Targets(delegations=Delegations({}, {DIRECTOR: director}))
        targets.add_key(signers[DIRECTOR].public_key, DIRECTOR)
        return self._fresh(targets, Targets.type)

    def _refuse_second(self, roots: list[str]) -> None:
        if self._store.exists(METADATA + TIMESTAMP_NAME):
            raise SettingsError(
                "there is already a registry here", advice="Publish into it, or name another --registry."
            )
        paths = [key_path(self._keys, role) for role in (*roots, Targets.type, *ONLINE_ROLES)]
        there = [path for path in (*paths, self._keys / ROOT_FILE) if path.exists()]
        if there:
            raise SettingsError(
                f"there are keys in {self._keys} already: {', '.join(path.name for path in there)}",
                advice="They may belong to another registry: name another --keys folder.",
            )

    def _signer(self, role: str) -> CryptoSigner:
        try:
            return load_signer(key_path(self._keys, role), self._passphrase)
        except NotFoundError as error:
            kind = "It belongs offline: bring it for this one change." if role in OFFLINE_ROLES else "Bring it here."
            raise NotFoundError(
                f"this needs the key {key_path(self._keys, role)}, which is not here", advice=kind
            ) from error

    def _next(self, targets: Targets, kind: str) -> Targets:
        targets.version += 1
        return self._fresh(targets, kind)

    def _fresh(self, signed: S, kind: str) -> S:
        signed.expires = self._expiry(kind)
        return signed

    def _expiry(self, kind: str) -> datetime:
        return self._now() + timedelta(days=LIFETIME_DAYS[kind])

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.wall()), timezone.utc)

    def _locked(self) -> AbstractContextManager[None]:
        return self._store.lock() if isinstance(self._store, Lockable) else nullcontext()


def _signed(signed: S, *signers: CryptoSigner) -> bytes:
    document = Metadata(signed)
    for signer in signers:
        document.sign(signer, append=True)
    return document.to_bytes()


def _release(file: TargetFile) -> int:
    return int(file.custom["release"])
