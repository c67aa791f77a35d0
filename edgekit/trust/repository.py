"""The publishing side of TUF: create a repository, delegate one role for each model, publish, renew the timestamp."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgekit.bundle.manifest import NAME_PATTERN, Manifest, parse_manifest, target_path
from edgekit.clock import SystemClock
from edgekit.errors import ManifestError, NotFoundError, SettingsError
from edgekit.protocols import Clock, Store
from edgekit.trust.assignment import DIRECTOR, DOWNGRADE
from edgekit.trust.commit import LIFETIME_DAYS, ROOT_FILE, Committer, signed_bytes
from edgekit.trust.keys import generate_key, key_path, load_signer
from edgekit.trust.state import METADATA, TIMESTAMP_NAME, TrustState, publisher_role, signed_at

MAX_AHEAD_SECONDS = 600.0  # usual difference between the clocks of two machines

log = logging.getLogger(__name__)

ONLINE_ROLES = (Snapshot.type, Timestamp.type, DIRECTOR)


class Repository:
    """A TUF repository, for users who have its keys.

    Args:
        store: The store that holds the repository, below ``metadata/``. If the store can lock, publishers take turns;
            a change fails if another publisher has committed since it began.
        keys: Folder with the key files, one for each role (``snapshot.key``), and with ``root.json``, the root that
            devices are enrolled with. Keys that a change does not need may be absent.
        passphrase: Passphrase of the key files; None if they are not encrypted.
        clock: Time, for expiry dates; None takes the system's.
    """

    def __init__(self, store: Store, keys: Path, passphrase: str | None = None, *, clock: Clock | None = None) -> None:
        self._store = store
        self._keys = keys
        self._passphrase = passphrase
        self._committer = Committer(store, keys, passphrase, clock or SystemClock())

    def create(self, *, root_keys: int = 1, root_threshold: int = 1) -> bytes:
        """Make all keys and an empty repository.

        Args:
            root_keys: Number of root keys; if it is more than one, their names are ``root-1`` and so on.
            root_threshold: Number of root keys that must sign a root.

        Returns:
            The trusted first root, which is also written to ``root.json`` beside the keys.

        Raises:
            SettingsError: there is already a repository or a key, or the threshold cannot be reached.
            StoreError: the store failed; then the keys exist, but no repository.
        """
        if not 1 <= root_threshold <= root_keys:
            raise SettingsError(
                f"root threshold is {root_threshold}, expected 1 to {root_keys} (the number of root keys)"
            )
        roots = [Root.type] if root_keys == 1 else [f"{Root.type}-{i + 1}" for i in range(root_keys)]
        with self._committer.locked():
            self._refuse_second(roots)
            signers = {
                role: generate_key(key_path(self._keys, role), self._passphrase)
                for role in (*roots, Targets.type, *ONLINE_ROLES)
            }
            root = self._committer.fresh(Root(version=1, consistent_snapshot=True), Root.type)
            for role in (Targets.type, Snapshot.type, Timestamp.type):
                root.add_key(signers[role].public_key, role)
            for name in roots:
                root.add_key(signers[name].public_key, Root.type)
            root.roles[Root.type].threshold = root_threshold
            data = signed_bytes(root, [signers[name] for name in roots])
            (self._keys / ROOT_FILE).write_bytes(data)
            self._store.put(f"{METADATA}1.root.json", data)
            self._committer.commit(
                TrustState(self._store, root, Snapshot(), Timestamp(), b""),
                {Targets.type: self._first_targets(signers)},
            )
            return data

    def models(self) -> list[str]:
        """Names of the models that have a publisher.

        Raises:
            NotFoundError: there is no repository.
            SignatureError: the repository does not belong to this root.
        """
        return self._committer.load().models()

    def add_model(self, name: str) -> None:
        """Make a publisher key for model `name` and delegate its targets to it; needs the offline targets key.

        Raises:
            NotFoundError: the targets key is not here.
            ManifestError: `name` is not a model name, or has a publisher already.
        """
        with self._committer.locked():
            state = self._committer.load()
            if name in state.models():
                raise ManifestError(f"model {name!r} has a publisher already")
            self._committer.commit(state, self._delegated(state, name))

    def check(self, manifest: bytes) -> TargetFile | None:
        """Check everything that `publish` needs, including keys, and change nothing. Raises as `publish`.

        Returns:
            The published target if this content is published already; None if it can be published.
        """
        state = self._committer.load()
        parsed = parse_manifest(manifest)
        known = _published(state, parsed, manifest)
        if known is None:
            if parsed.name in state.models():
                self._committer.signers(publisher_role(parsed.name), state.top())
            else:
                self._committer.signers(Targets.type, state.root)
            for role in (Snapshot.type, Timestamp.type):
                self._committer.signers(role, state.root)
        return known

    def publish(self, manifest: bytes, custom: Mapping[str, object] | None = None) -> TargetFile:
        """Add a bundle's manifest to the catalogue; publishing the same content again only updates `custom` fields.

        The first publish of a model makes its publisher in the same change and needs the offline targets key.

        Args:
            manifest: The canonical bytes of the manifest; its blobs are already in the store.
            custom: Further signed fields of the target.

        Returns:
            The target; its custom fields hold name, target, version and the release counter.

        Raises:
            ManifestError: the manifest is not valid, or its version is published with other content.
            NotFoundError: a key is not here.
        """
        parsed = parse_manifest(manifest)
        with self._committer.locked():
            state = self._committer.load()
            known = _published(state, parsed, manifest)
            role = publisher_role(parsed.name)
            if known is not None:
                if custom and {**known.custom, **custom} != known.custom:
                    known.custom.update(custom)
                    publisher = state.publisher(parsed.name)
                    publisher.targets[known.path] = known
                    self._committer.commit(state, {role: self._committer.next(publisher, "publisher")})
                return known
            if parsed.name in state.models():
                changed = {role: self._committer.next(state.publisher(parsed.name), "publisher")}
            else:
                changed = self._delegated(state, parsed.name)
            target = TargetFile.from_data(_path(parsed), manifest, ["sha256"])
            release = 1 + max((_release(file) for file in changed[role].targets.values()), default=0)
            identity = {"name": parsed.name, "target": parsed.target, "version": parsed.version, "release": release}
            target.unrecognized_fields["custom"] = {**(custom or {}), **identity}
            changed[role].targets[target.path] = target
            self._committer.commit(state, changed)
            return target

    def check_signing(self, name: str) -> None:
        """Check that the keys for a change of a published model are here. Raises NotFoundError if one is not."""
        state = self._committer.load()
        self._committer.signers(publisher_role(name), state.top())
        for role in (Snapshot.type, Timestamp.type):
            self._committer.signers(role, state.root)

    def add_fields(self, manifest: bytes, change: Callable[[Mapping[str, object]], Mapping[str, object]]) -> TargetFile:
        """Change signed fields of a published bundle's target; its content, digest and release number stay.

        Args:
            manifest: The canonical bytes of the bundle's manifest.
            change: Gives the fields to set, from those that are signed now; nobody else changes them meanwhile.

        Raises:
            NotFoundError: the bundle is not published, or a key is not here.
            ManifestError: the manifest is not valid, or its version is published with other content.
        """
        parsed = parse_manifest(manifest)
        with self._committer.locked():
            state = self._committer.load()
            known = _published(state, parsed, manifest)
            if known is None:
                raise NotFoundError(
                    f"{parsed.name} {parsed.version} for {parsed.target} is not published in this registry",
                    advice="Publish it first: edgekit registry publish BUNDLE",
                )
            known.custom.update(change(known.custom))
            publisher = state.publisher(parsed.name)
            publisher.targets[known.path] = known
            self._committer.commit(state, {publisher_role(parsed.name): self._committer.next(publisher, "publisher")})
            return known

    def mark(
        self,
        name: str,
        version: str,
        *,
        retired: bool | None = None,
        channel: str | None = None,
        downgrade: bool | None = None,
        dry_run: bool = False,
    ) -> list[str]:
        """Set signed fields on every target of a version; its content and release number stay.

        Args:
            name: Name of the model.
            version: The version.
            retired: True if it is no longer chosen automatically; None leaves the field unchanged.
            channel: Channel to promote it to, for example ``stable``; None leaves the field unchanged.
            downgrade: True if devices may go back to it from a newer release; None leaves the field unchanged.
            dry_run: Check everything, including keys, and change nothing.

        Returns:
            The paths of the changed targets.

        Raises:
            NotFoundError: there is no such model or version, or a key is not here.
            ManifestError: `channel` is not a valid name.
        """
        if channel is not None and not NAME_PATTERN.fullmatch(channel):
            raise ManifestError(f"channel {channel!r} does not match {NAME_PATTERN.pattern}")
        with self._committer.locked():
            state = self._committer.load()
            publisher = state.publisher(name)
            files = [file for file in publisher.targets.values() if file.custom.get("version") == version]
            if not files:
                raise NotFoundError(
                    f"model {name!r} has no version {version!r}", advice=f"See: edgekit registry show {name}"
                )
            fields = {"retired": retired, "channel": channel, DOWNGRADE: downgrade}
            for file in files:
                file.custom.update({key: value for key, value in fields.items() if value is not None})
            if dry_run:
                self._committer.signers(publisher_role(name), state.top())
                for role in (Snapshot.type, Timestamp.type):
                    self._committer.signers(role, state.root)
                return [file.path for file in files]
            self._committer.commit(state, {publisher_role(name): self._committer.next(publisher, "publisher")})
            return [file.path for file in files]

    def seconds_ahead(self) -> float:
        """By how many seconds the metadata was signed later than this machine's clock shows; 0 where it was not.

        Raises as `refresh_timestamp`.
        """
        return self._ahead(self._committer.load())

    def _ahead(self, state: TrustState) -> float:
        return max(0.0, signed_at(state.timestamp) - self._committer.now().timestamp())

    def refresh_timestamp(self, *, force: bool = False) -> bool:
        """Sign snapshot and timestamp again after half of their lifetime; needs only the online keys.

        They are also signed again if they were signed in the future, by a machine whose clock was ahead: devices refuse
        such metadata.

        Args:
            force: Sign them now.

        Returns:
            True if they were signed.

        Raises:
            NotFoundError: there is no repository, or a key is not here.
            StoreError, SignatureError: the store failed, or its metadata is not trusted.
        """
        with self._committer.locked():
            state = self._committer.load()
            left = min(state.snapshot.expires, state.timestamp.expires) - self._committer.now()
            ahead = self._ahead(state)
            if ahead > MAX_AHEAD_SECONDS:
                log.warning(
                    "the registry's metadata was signed %.1f h later than this machine's clock shows, so a clock "
                    "was or is wrong; it is signed again",
                    ahead / 3600,
                )
                force = True
            if not force and left > timedelta(days=LIFETIME_DAYS[Timestamp.type]) / 2:
                return False
            self._committer.commit(state, {})
            return True

    def missing(self, roles: Iterable[str]) -> list[str]:
        """The top-level roles among `roles` for which the key folder has too few keys. Raises as `models`."""
        root = self._committer.load().root
        missing = []
        for role in roles:
            try:
                self._committer.signers(role, root)
            except NotFoundError:
                missing.append(role)
        return missing

    def director(self) -> CryptoSigner:
        """The current director key, which signs assignments and commands.

        Raises:
            NotFoundError: the key is not here, or there is no repository.
            SignatureError: as `models`.
        """
        return self._committer.signers(DIRECTOR, self._committer.load().top())[0]

    def _delegated(self, state: TrustState, name: str) -> dict[str, Targets]:
        """Make the publisher key of model `name`; returns the changed roles."""
        if not NAME_PATTERN.fullmatch(name):
            raise ManifestError(f"model name {name!r} does not match {NAME_PATTERN.pattern}")
        self._committer.signers(Targets.type, state.root)
        role, top = publisher_role(name), state.top()
        # An interrupted change may have left the key here; no metadata trusts it yet, so it can be used.
        path = key_path(self._keys, role)
        publisher = load_signer(path, self._passphrase) if path.exists() else generate_key(path, self._passphrase)
        assert top.delegations is not None
        assert top.delegations.roles is not None
        top.delegations.roles[role] = DelegatedRole(
            role, [], threshold=1, terminating=True, paths=[f"models/{name}/*/*/*"]
        )
        top.add_key(publisher.public_key, role)
        return {
            Targets.type: self._committer.next(top, Targets.type),
            role: self._committer.fresh(Targets(), "publisher"),
        }

    def _first_targets(self, signers: Mapping[str, CryptoSigner]) -> Targets:
        # The director role has no paths, so no client requests a director.json, and there is none.
        director = DelegatedRole(DIRECTOR, [], threshold=1, terminating=True, paths=[])
        targets = Targets(delegations=Delegations({}, {DIRECTOR: director}))
        targets.add_key(signers[DIRECTOR].public_key, DIRECTOR)
        return self._committer.fresh(targets, Targets.type)

    def _refuse_second(self, roots: list[str]) -> None:
        if self._store.exists(METADATA + TIMESTAMP_NAME):
            raise SettingsError(
                "there is already a registry here", advice="Publish into it, or name another one with --registry."
            )
        paths = [key_path(self._keys, role) for role in (*roots, Targets.type, *ONLINE_ROLES)]
        existing = [path for path in (*paths, self._keys / ROOT_FILE) if path.exists()]
        if existing:
            raise SettingsError(
                f"{self._keys} already holds keys: {', '.join(path.name for path in existing)}",
                advice="They may belong to another registry: name another folder with --keys.",
            )


def _path(manifest: Manifest) -> str:
    return target_path(manifest.name, manifest.target, manifest.version)


def _published(state: TrustState, parsed: Manifest, manifest: bytes) -> TargetFile | None:
    """The published target with this content; None if its version is not published.

    Raises:
        ManifestError: the version is published with other content.
    """
    if parsed.name not in state.models():
        return None
    path = _path(parsed)
    known = state.publisher(parsed.name).targets.get(path)
    if known is not None and known.hashes != TargetFile.from_data(path, manifest, ["sha256"]).hashes:
        raise ManifestError(
            f"{path} is already published with other content (digest {known.hashes['sha256'][:12]})",
            advice="A published version cannot change: convert again with a higher --version.",
        )
    return known


def _release(file: TargetFile) -> int:
    return int(file.custom["release"])
