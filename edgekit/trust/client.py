"""The device side of TUF: signed metadata in, trusted answers out. Blobs are not its business."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgekit.errors import (
    ClockError,
    DiskError,
    DowngradeError,
    ExpiredError,
    NotFoundError,
    SignatureError,
    UnavailableError,
    VerificationError,
)
from edgekit.trust.assignment import DIRECTOR, Assignment, verify_assignment
from edgekit.trust.state import CUSTOM, SIGNED_AT, publisher_role

Fetch = Callable[[str], bytes]

# Tighter than the library's, for devices: a hostile registry can cost at most this much per refresh.
LIMITS = UpdaterConfig(
    max_root_rotations=1024,  # from the root that a device was born with; each one is signed by the one before
    root_max_length=256 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=1024 * 1024,
    targets_max_length=4 * 1024 * 1024,
)
# No registry was signed before the first edgekit was; a clock that stands earlier has lost its battery.
EARLIEST = 1_704_067_200  # 2024-01-01
# How far the clocks of two honest machines may be apart, seconds.
CLOCK_SKEW_SECONDS = 86_400
TIME = "time"
_ROLES = (Root.type, Timestamp.type, Snapshot.type, Targets.type)
_BASE = "registry:/"


class TrustClient:
    """Verified metadata of one registry. It blocks while it fetches, so an event loop calls it in a thread.

    Args:
        cache_dir: What was verified last, kept by TUF's own client: replaced atomically, without fsync. After a power
            cut an unreadable file counts as absent; what must never go back belongs in the caller's journal and comes
            in as `seen`.
        root: Bytes of the root that this device was born with; every refresh starts from it.
        fetch: Returns one file of the repository, for example ``timestamp.json``. Raises NotFoundError where there is
            none; its other errors pass through.
    """

    def __init__(self, cache_dir: Path, root: bytes, fetch: Fetch) -> None:
        self._cache_dir = cache_dir
        self._root = root
        self._fetcher = _Fetcher(fetch)
        self._updater: Updater | None = None

    def refresh(self, now: float | None = None, seen: Mapping[str, int] | None = None) -> None:
        """Fetch and verify root, timestamp, snapshot and the top-level targets.

        Args:
            now: Wall clock seconds to judge expiry by; the machine's own time when None.
            seen: What was trusted last, as `versions` gave it. Where the keys of timestamp or snapshot have been
                changed since, its versions do not count: so a registry recovers from a thief who signed absurdly high
                ones.

        Raises:
            SignatureError, DowngradeError, ExpiredError, VerificationError: not to be trusted.
            ClockError: it is certainly later than `now`.
            UnavailableError: a file could not be fetched; what `fetch` raises passes through.
            DiskError: the cache cannot be written.
        """
        self._updater = None
        seen = seen or {}
        now = time.time() if now is None else now
        with _mapped():
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            updater = Updater(str(self._cache_dir), _BASE, fetcher=self._fetcher, config=LIMITS, bootstrap=self._root)
            # No public way to say what time it is in tuf 7; a test holds that this one works.
            updater._trusted_set.reference_time = datetime.fromtimestamp(now, timezone.utc)
            updater.refresh()
        found = _versions(updater)
        counting = (Root.type,) if self._keys_changed(updater, seen.get(Root.type, found[Root.type])) else _ROLES
        older = [f"{role} {found[role]} (seen: {seen[role]})" for role in counting if found[role] < seen.get(role, 0)]
        if older:
            raise DowngradeError("the registry went back to older metadata: " + ", ".join(older))
        _check_clock(now, max(EARLIEST, seen.get(TIME, 0), found[TIME]))
        self._updater = updater

    @property
    def versions(self) -> dict[str, int]:
        """Trusted versions by role, after a refresh, and under ``time`` when that timestamp was signed.

        That is in wall clock seconds, 0 where the timestamp does not say.
        """
        return _versions(self._refreshed())

    def find_target(self, path: str) -> TargetFile | None:
        """What the catalogue says about a target, by the role that its path is delegated to; None if it has none.

        Raises:
            As `refresh`.
        """
        with _mapped():
            return self._refreshed().get_targetinfo(path)

    def catalogue(self, model: str | None = None) -> dict[str, TargetFile]:
        """Every target of one model's publisher, or of all publishers, by path. Fetches one file per model.

        Raises:
            As `refresh`.
        """
        found: dict[str, TargetFile] = {}
        delegations = self._top().delegations
        for role in (delegations.roles or {}).values() if delegations else ():
            if not role.paths or (model is not None and role.name != publisher_role(model)):
                continue
            # Asking for a path that matches the role makes the client load and verify the role.
            self.find_target(role.paths[0].replace("*", "_"))
            targets = self._refreshed()._trusted_set[role.name]
            assert isinstance(targets, Targets)
            found.update((path, file) for path, file in targets.targets.items() if role.is_delegated_path(path))
        return found

    def verify_assignment(
        self, payload: bytes, device: str, fleet: str, now: float, *, seen_version: int = 0
    ) -> Assignment:
        """The assignment in `payload`, verified against the director that the last refresh trusts.

        Args and Raises: as `edgekit.trust.assignment.verify_assignment`.
        """
        return verify_assignment(payload, self._top(), device=device, fleet=fleet, now=now, seen_version=seen_version)

    def director_key(self) -> Key:
        """The public key that signs assignments and commands, as the last refresh trusts it.

        Raises:
            VerificationError: the trusted metadata names no director.
        """
        top = self._top()
        try:
            (keyid,) = top.get_delegated_role(DIRECTOR).keyids
            return top.get_key(keyid)
        except ValueError as error:
            raise VerificationError("the trusted metadata does not name exactly one director key") from error

    def _keys_changed(self, updater: Updater, version: int) -> bool:
        """True when timestamp or snapshot have other keys now than in root `version`."""
        root = updater._trusted_set.root
        # The refresh left the chain of verified roots here; what is not in it came before the root that we start from.
        path = self._cache_dir / "root_history" / f"{version}.root.json"
        if version >= root.version or not path.exists():
            return version < root.version
        with _mapped():
            old = Metadata[Root].from_bytes(path.read_bytes()).signed
        online = (Timestamp.type, Snapshot.type)
        return any(set(old.roles[role].keyids) != set(root.roles[role].keyids) for role in online)

    def _refreshed(self) -> Updater:
        if self._updater is None:
            self.refresh()
        assert self._updater is not None
        return self._updater

    def _top(self) -> Targets:
        return self._refreshed()._trusted_set.targets


class _Fetcher(FetcherInterface):
    """Asks `fetch` by file name. A generator, since the library wraps no error that is raised while it iterates."""

    def __init__(self, fetch: Fetch) -> None:
        self._ask = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(f"{_BASE}/").removeprefix(_BASE)
        try:
            yield self._ask(name)
        except NotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from error


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except UnsignedMetadataError as error:
        raise SignatureError(f"metadata is not signed by who may sign it: {error}") from error
    except BadVersionNumberError as error:
        raise DowngradeError(f"metadata has the wrong version: {error}") from error
    except ExpiredMetadataError as error:
        raise ExpiredError(
            f"metadata is too old: {error}",
            advice="Check this machine's clock, then that the controller runs.",
        ) from error
    except RepositoryError as error:
        raise VerificationError(f"metadata is not valid: {error}") from error
    except DownloadLengthMismatchError as error:
        raise VerificationError(f"metadata is longer than allowed: {error}") from error
    except DownloadError as error:
        raise UnavailableError(f"metadata could not be fetched: {error}") from error
    except OSError as error:
        raise DiskError(f"the metadata cache cannot be written: {error}") from error


def _versions(updater: Updater) -> dict[str, int]:
    trusted = updater._trusted_set
    custom = trusted.timestamp.unrecognized_fields.get(CUSTOM)
    signed_at = custom.get(SIGNED_AT) if isinstance(custom, dict) else None
    if not isinstance(signed_at, int) or not 0 <= signed_at <= trusted.timestamp.expires.timestamp():
        signed_at = 0
    versions = {role: trusted[role].version for role in _ROLES}
    return {**versions, TIME: signed_at}


def _check_clock(now: float, floor: int) -> None:
    if now < floor - CLOCK_SKEW_SECONDS:
        raise ClockError(
            f"this machine's clock says {_date(now)}, but it is later than {_date(floor)}",
            advice="Set the clock; until then nothing is changed here.",
        )


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
