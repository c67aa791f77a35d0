"""Changes of signing keys (add, rotate, revoke) and the yearly renewal; devices follow without any change on them.

A device trusts the root that it was enrolled with and follows the chain of roots from there: each root is signed by the
keys of the previous root and by its own keys. So the root keys can change every key, including the root keys.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from edgekit.clock import SystemClock
from edgekit.errors import NotFoundError, SettingsError
from edgekit.protocols import Clock, Store
from edgekit.trust.assignment import DIRECTOR
from edgekit.trust.commit import Committer
from edgekit.trust.keys import free_path, generate_key, key_files
from edgekit.trust.state import TrustState, publisher_role

TOP_ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


class KeyRow(msgspec.Struct, frozen=True):
    """One key of one role.

    Attributes:
        role: Name of the role, for example ``root`` or ``publisher-digits``.
        keyid: TUF key id in hex.
        threshold: Number of keys of the role that must sign.
        file: Name of the private key's file if it is in the key folder; else empty.
        expires: Expiry of the role's metadata, ISO 8601; empty for the director, whose assignments expire separately.
    """

    role: str
    keyid: str
    threshold: int
    file: str
    expires: str


class KeyManager:
    """Changes the keys of a repository's roles.

    Args:
        store, keys, passphrase, clock: As for `edgekit.trust.repository.Repository`.
        dry_run: Check the change and change nothing; methods that would make a key return an empty id.
    """

    def __init__(
        self,
        store: Store,
        keys: Path,
        passphrase: str | None = None,
        *,
        clock: Clock | None = None,
        dry_run: bool = False,
    ) -> None:
        self._dry_run = dry_run
        self._keys = keys
        self._passphrase = passphrase
        self._committer = Committer(store, keys, passphrase, clock or SystemClock())

    def rows(self) -> list[KeyRow]:
        """All keys that the repository trusts, by role.

        Raises:
            NotFoundError: there is no repository.
            SignatureError: the repository does not belong to this root.
        """
        state = self._committer.load()
        top = state.top()
        files = key_files(self._keys, self._passphrase)
        expires = {Root.type: state.root, Targets.type: top, Snapshot.type: state.snapshot}
        expires |= {Timestamp.type: state.timestamp}
        expires |= {publisher_role(name): state.publisher(name) for name in state.models()}
        return [
            KeyRow(
                role,
                keyid,
                delegator.get_delegated_role(role).threshold,
                files[keyid].name if keyid in files else "",
                expires[role].expires.isoformat() if role in expires else "",
            )
            for role, delegator in _delegators(state.root, top).items()
            for keyid in delegator.get_delegated_role(role).keyids
        ]

    def add(self, role: str, key: Key | None = None, *, threshold: int | None = None) -> str:
        """Add a key to `role`.

        Args:
            role: Name of the role.
            key: The public key; None makes a key pair in the key folder.
            threshold: New number of keys that must sign; None leaves it unchanged.

        Returns:
            The new key's id.

        Raises:
            SettingsError: there is no such role, it already has that key, or the threshold cannot be reached.
            NotFoundError: a key that must sign is not here.
            StoreError: the store failed.
        """
        if role == DIRECTOR:
            raise SettingsError(
                "the director has exactly one key", advice="Replace it with: edgekit registry key rotate director"
            )
        return self._change(role, [key] if key else None, [], threshold)

    def rotate(self, role: str, keyid: str | None = None, key: Key | None = None) -> str:
        """Replace a key of `role`; the old key can no longer sign. Returns and raises as `add`.

        Args:
            role: Name of the role.
            keyid: The old key's id or its beginning; None if the role has only one key.
            key: The new public key; None makes a key pair in the key folder.
        """
        return self._change(role, [key] if key else None, [keyid], None)

    def revoke(self, role: str, keyid: str, *, threshold: int | None = None) -> None:
        """Remove a key from `role`; the remaining keys sign its metadata again. Arguments and errors as `add`."""
        self._change(role, [], [keyid], threshold)

    def renew(self) -> list[str]:
        """Sign the metadata of every role whose keys are here again, each for its whole lifetime.

        Returns:
            The renewed roles; snapshot and timestamp are always among them.

        Raises:
            NotFoundError: the snapshot or timestamp key is not here.
            StoreError: the store failed.
        """
        with self._committer.locked():
            state = self._committer.load()
            top = state.top()
            roles = {publisher_role(name): state.publisher(name) for name in state.models()}
            changed = {
                role: self._committer.next(targets, "publisher")
                for role, targets in roles.items()
                if self._can_sign(role, top)
            }
            if self._can_sign(Targets.type, state.root):
                changed[Targets.type] = self._committer.next(top, Targets.type)
            root = _next_root(self._committer, state) if self._can_sign(Root.type, state.root) else None
            for role in (Snapshot.type, Timestamp.type):
                self._committer.signers(role, state.root)
            if not self._dry_run:
                self._committer.commit(state, changed, root)
        return [*([Root.type] if root else []), *sorted(changed), Snapshot.type, Timestamp.type]

    def _can_sign(self, role: str, delegator: Root | Targets) -> bool:
        try:
            self._committer.signers(role, delegator)
        except NotFoundError:
            return False
        return True

    def _change(self, role: str, new: Sequence[Key] | None, old: Sequence[str | None], threshold: int | None) -> str:
        with self._committer.locked():
            state = self._committer.load()
            root, top = _next_root(self._committer, state), state.top()
            delegators = _delegators(root, top)
            if role not in delegators:
                raise SettingsError(f"there is no role {role!r}", advice=f"Use one of: {', '.join(delegators)}.")
            delegator = delegators[role]
            keyids = list(delegator.get_delegated_role(role).keyids)
            removed = [_match_keyid(role, keyids, prefix) for prefix in old]
            count = len(keyids) - len(removed) + (1 if new is None else len(new))
            _check_threshold(role, delegator, count, threshold)
            self._check_signers(state, role)
            if self._dry_run:
                _apply(delegator, role, keyids, new or [], removed, None)
                return str(new[0].keyid) if new else ""
            if new is None:
                new = [generate_key(free_path(self._keys, role), self._passphrase).public_key]
            _apply(delegator, role, keyids, new, removed, threshold)
            self._committer.commit(state, *self._changed_roles(state, role, root, top))
            return str(new[0].keyid) if new else ""

    def _check_signers(self, state: TrustState, role: str) -> None:
        """Check, before a key is made, that the keys that must sign the change are here.

        The keys of `role` itself are not needed, unless it signs its own change: they may be lost.
        """
        delegator = Root.type if role in TOP_ROLES else Targets.type
        for needed in {delegator, Snapshot.type, Timestamp.type} - ({role} - {delegator}):
            self._committer.signers(needed, state.root)

    def _changed_roles(
        self, state: TrustState, role: str, root: Root, top: Targets
    ) -> tuple[dict[str, Targets], Root | None]:
        if role in TOP_ROLES:
            changed = {Targets.type: self._committer.next(top, Targets.type)} if role == Targets.type else {}
            return changed, root
        changed = {Targets.type: self._committer.next(top, Targets.type)}
        if role != DIRECTOR:
            publisher = state.publisher(role.removeprefix(publisher_role("")))
            changed[role] = self._committer.next(publisher, "publisher")
        return changed, None


def _next_root(committer: Committer, state: TrustState) -> Root:
    root = copy.deepcopy(state.root)
    root.version += 1
    return committer.fresh(root, Root.type)


def _delegators(root: Root, top: Targets) -> dict[str, Root | Targets]:
    """The delegating metadata of each role, by role name."""
    delegated = (top.delegations.roles or {}) if top.delegations else {}
    return {**dict.fromkeys(TOP_ROLES, root), **dict.fromkeys(sorted(delegated), top)}


def _match_keyid(role: str, keyids: Collection[str], prefix: str | None) -> str:
    """The only key id that begins with `prefix`; None matches the role's only key."""
    matches = [keyid for keyid in keyids if keyid.startswith(prefix or "")]
    if len(matches) != 1:
        expected = f"exactly one that begins with {prefix!r}" if prefix else "exactly one, or a KEYID"
        raise SettingsError(
            f"{role} has {len(keyids)} keys, {len(matches)} of which match; expected {expected}",
            advice=f"Its keys: {', '.join(keyid[:12] for keyid in keyids)}.",
        )
    return matches[0]


def _check_threshold(role: str, delegator: Root | Targets, count: int, threshold: int | None) -> None:
    required = delegator.get_delegated_role(role).threshold if threshold is None else threshold
    if not 1 <= required <= count:
        raise SettingsError(f"{role} would have {count} keys and a threshold of {required}, expected 1 to {count}")


def _apply(
    delegator: Root | Targets,
    role: str,
    keyids: Collection[str],
    new: Sequence[Key],
    removed: Sequence[str],
    threshold: int | None,
) -> None:
    for key in new:
        if key.keyid in keyids:
            raise SettingsError(f"{role} already has the key {key.keyid[:12]}")
        delegator.add_key(key, role)
    for keyid in removed:
        delegator.revoke_key(keyid, role)
    if threshold is not None:
        delegator.get_delegated_role(role).threshold = threshold
