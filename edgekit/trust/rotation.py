"""Changes of keys that no device has to be touched for: add, rotate, revoke; and the yearly renewal.

A device trusts the root that it was born with and follows the chain of roots from there: each next one is signed by
the keys of the one before and by its own. So whoever holds the root keys can change every key, those of the root too.
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
        role: As key files are called: ``root``, ``publisher-digits``.
        keyid: TUF's, hex.
        threshold: How many keys of the role must sign.
        file: Name of the private key's file, where it is here; else empty.
        expires: When the role's metadata expires, ISO 8601; empty for the director, whose assignments expire by
            themselves.
    """

    role: str
    keyid: str
    threshold: int
    file: str
    expires: str


class KeyKeeper:
    """Changes who may sign.

    Args:
        store, keys, passphrase, clock: As of `edgekit.trust.repository.Repository`.
        dry_run: Check everything that can be checked, and change nothing; what makes a key returns an empty id.
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
        """Every key that the repository trusts, by role.

        Raises:
            NotFoundError, SignatureError: there is no repository, or not one of these keys' root.
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
                judge.get_delegated_role(role).threshold,
                files[keyid].name if keyid in files else "",
                expires[role].expires.isoformat() if role in expires else "",
            )
            for role, judge in _judges(state.root, top).items()
            for keyid in judge.get_delegated_role(role).keyids
        ]

    def add(self, role: str, key: Key | None = None, *, threshold: int | None = None) -> str:
        """Let one more key sign for `role`.

        Args:
            key: The public key; None makes a key pair here.
            threshold: How many keys must sign from now on; None leaves it.

        Returns:
            The new key's id.

        Raises:
            SettingsError: there is no such role, it has that key, or the threshold cannot be reached.
            NotFoundError: a key that must sign is not here. StoreError: the store failed.
        """
        if role == DIRECTOR:
            raise SettingsError("the director has one key", advice="Use: edgekit registry key rotate director")
        return self._change(role, [key] if key else None, [], threshold)

    def rotate(self, role: str, keyid: str | None = None, key: Key | None = None) -> str:
        """Put a new key in the place of another one, which may sign no longer.

        Args:
            keyid: The old one, or the beginning of its id; None where the role has one key only.
            key: The public key of the new one; None makes a key pair here.

        Returns, Raises:
            As `add`.
        """
        return self._change(role, [key] if key else None, [keyid], None)

    def revoke(self, role: str, keyid: str, *, threshold: int | None = None) -> None:
        """Take a key from `role`; what it signed is signed anew by those that stay.

        Raises:
            As `add`.
        """
        self._change(role, [], [keyid], threshold)

    def renew(self) -> list[str]:
        """Sign everything anew that the keys here can sign, each for its whole lifetime.

        Returns:
            The roles that were renewed; snapshot and timestamp always are.

        Raises:
            NotFoundError: the snapshot or timestamp key is not here. StoreError: the store failed.
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

    def _can_sign(self, role: str, judge: Root | Targets) -> bool:
        try:
            self._committer.signers(role, judge)
        except NotFoundError:
            return False
        return True

    def _change(self, role: str, new: Sequence[Key] | None, old: Sequence[str | None], threshold: int | None) -> str:
        with self._committer.locked():
            state = self._committer.load()
            root, top = _next_root(self._committer, state), state.top()
            judges = _judges(root, top)
            if role not in judges:
                raise SettingsError(f"there is no role {role!r}", advice=f"Roles here: {', '.join(judges)}.")
            judge = judges[role]
            keyids = list(judge.get_delegated_role(role).keyids)
            gone = [_chosen(role, keyids, begin) for begin in old]
            _check_threshold(role, judge, len(keyids) - len(gone) + (1 if new is None else len(new)), threshold)
            self._check_signers(state, role)
            if self._dry_run:
                _apply(judge, role, keyids, new or [], gone, None)
                return str(new[0].keyid) if new else ""
            if new is None:
                new = [generate_key(free_path(self._keys, role), self._passphrase).public_key]
            _apply(judge, role, keyids, new, gone, threshold)
            self._committer.commit(state, *self._signed_anew(state, role, root, top))
            return str(new[0].keyid) if new else ""

    def _check_signers(self, state: TrustState, role: str) -> None:
        """Before a key is made: those that allow the change are here. A key that is changed may be lost."""
        above = Root.type if role in TOP_ROLES else Targets.type
        for needed in {above, Snapshot.type, Timestamp.type} - ({role} - {above}):
            self._committer.signers(needed, state.root)

    def _signed_anew(
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


def _judges(root: Root, top: Targets) -> dict[str, Root | Targets]:
    """Who delegates to each role."""
    delegated = (top.delegations.roles or {}) if top.delegations else {}
    return {**dict.fromkeys(TOP_ROLES, root), **dict.fromkeys(sorted(delegated), top)}


def _chosen(role: str, keyids: Collection[str], begin: str | None) -> str:
    """The one key id that begins with `begin`."""
    found = [keyid for keyid in keyids if keyid.startswith(begin or "")]
    if len(found) != 1:
        wanted = f"one that begins with {begin!r}" if begin else "a single one to rotate"
        raise SettingsError(
            f"{role} has {len(keyids)} keys, {len(found)} of which fit; expected {wanted}",
            advice=f"Its keys: {', '.join(keyid[:12] for keyid in keyids)}.",
        )
    return found[0]


def _check_threshold(role: str, judge: Root | Targets, count: int, threshold: int | None) -> None:
    wanted = judge.get_delegated_role(role).threshold if threshold is None else threshold
    if not 1 <= wanted <= count:
        raise SettingsError(f"{role} would have {count} keys, {wanted} of which must sign; expected 1 to {count}")


def _apply(
    judge: Root | Targets,
    role: str,
    keyids: Collection[str],
    new: Sequence[Key],
    gone: Sequence[str],
    threshold: int | None,
) -> None:
    for key in new:
        if key.keyid in keyids:
            raise SettingsError(f"{role} has the key {key.keyid[:12]} already")
        judge.add_key(key, role)
    for keyid in gone:
        judge.revoke_key(keyid, role)
    if threshold is not None:
        judge.get_delegated_role(role).threshold = threshold
