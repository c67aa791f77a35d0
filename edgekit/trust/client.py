"""The reading side of TUF: fetches and verifies metadata. It does not fetch blobs."""

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
from edgekit.trust.state import publisher_role, signed_at

Fetch = Callable[[str], bytes]

# Lower than the library's limits, for devices: a hostile registry can make a refresh read no more than this.
LIMITS = UpdaterConfig(
    max_root_rotations=1024,  # counted from the root that the device was enrolled with
    root_max_length=256 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=1024 * 1024,
    targets_max_length=4 * 1024 * 1024,
)
# No registry is older than edgekit, so a clock that shows an earlier time is wrong.
EARLIEST = 1_704_067_200  # 2024-01-01
CLOCK_SKEW_SECONDS = 86_400  # allowed difference between the clocks of two machines
TIME = "time"
WAITS_FOR_CACHE = (0.01, 0.05, 0.2)  # seconds, while another process writes to it
_ROLES = (Root.type, Timestamp.type, Snapshot.type, Targets.type)
_BASE = "registry:/"


class TrustClient:
    """Verified metadata of one registry. Its methods block while they fetch, so an event loop calls them in a thread.

    Args:
        cache_dir: Folder in which TUF's client keeps verified metadata; it replaces files atomically, without fsync.
            An unreadable file after a power cut counts as absent. The caller stores the trusted versions durably and
            passes them to `refresh` as `seen`.
        root: Bytes of the root that this device was enrolled with; every refresh starts from it.
        fetch: Returns one file of the repository, for example ``timestamp.json``. It raises NotFoundError if there is
            no such file; its other errors pass through.
    """

    def __init__(self, cache_dir: Path, root: bytes, fetch: Fetch) -> None:
        self._cache_dir = cache_dir
        self._root = root
        self._fetcher = _Fetcher(fetch)
        self._updater: Updater | None = None
        self._held: dict[str, int] = {}
        self._now = 0.0  # wall clock seconds of the last refresh

    def refresh(self, now: float | None = None, seen: Mapping[str, int] | None = None) -> None:
        """Fetch and verify root, timestamp, snapshot and the top-level targets.

        Args:
            now: Wall clock seconds, for the check of expiry; None takes this machine's time.
            seen: The versions that were trusted last, from `versions`. If the keys of timestamp or snapshot have
                changed since, only the root's version counts: so a registry recovers after a stolen key signed very
                high versions.

        Raises:
            SignatureError, DowngradeError, ExpiredError, VerificationError: the metadata is not trusted.
            ClockError: this machine's clock is behind, or that of the machine which signed the metadata was ahead.
            UnavailableError: a file could not be fetched; errors of `fetch` pass through.
            DiskError: the cache cannot be written.
        """
        self._updater = None
        seen = seen or {}
        self._now = now = time.time() if now is None else now
        with _mapped(now):
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            updater = self._updated(now)
        versions = _versions(updater)
        checked = (Root.type,) if self._keys_changed(updater, seen.get(Root.type, versions[Root.type])) else _ROLES
        older = [
            f"{role} {versions[role]} (seen: {seen[role]})" for role in checked if versions[role] < seen.get(role, 0)
        ]
        if older:
            raise DowngradeError("the registry offers older metadata than before: " + ", ".join(older))
        _check_clock(now, max(EARLIEST, seen.get(TIME, 0)), versions[TIME])
        self._updater = updater
        self._note_held()

    def _updated(self, now: float) -> Updater:
        """An updater with the newest metadata, which are in the cache as well.

        Another process may use the same cache, as two commands at once do. The library replaces a link there in two
        steps, and fails without harm if the other does so meanwhile.
        """
        for wait in WAITS_FOR_CACHE:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                return self._newest(now)
            time.sleep(wait)
        return self._newest(now)

    def _newest(self, now: float) -> Updater:
        updater = Updater(str(self._cache_dir), _BASE, fetcher=self._fetcher, config=LIMITS, bootstrap=self._root)
        # tuf 7 has no public way to set the time; a test checks that this one works.
        updater._trusted_set.reference_time = datetime.fromtimestamp(now, timezone.utc)
        updater.refresh()
        return updater

    @property
    def held(self) -> dict[str, int]:
        """Versions by role that were verified last, those of publishers included; nothing is trusted because of it."""
        return dict(self._held)

    @property
    def versions(self) -> dict[str, int]:
        """Trusted versions by role; ``time`` is when the timestamp was signed (wall clock seconds, 0 if not stated)."""
        return _versions(self._refreshed())

    def find_target(self, path: str) -> TargetFile | None:
        """The target at `path`, verified with the role that the path is delegated to; None if there is none.

        Raises as `refresh`.
        """
        with _mapped(self._now):
            found = self._refreshed().get_targetinfo(path)
        self._note_held()
        return found

    def catalogue(self, model: str | None = None) -> dict[str, TargetFile]:
        """All targets of one model, or of all models, by path. Fetches one file for each model.

        Raises as `refresh`.
        """
        catalogue: dict[str, TargetFile] = {}
        delegations = self._top().delegations
        for role in (delegations.roles or {}).values() if delegations else ():
            if not role.paths or (model is not None and role.name != publisher_role(model)):
                continue
            # Asking for a path that matches the role makes the client load and verify the role.
            self.find_target(role.paths[0].replace("*", "_"))
            targets = self._refreshed()._trusted_set[role.name]
            assert isinstance(targets, Targets)
            catalogue.update((path, file) for path, file in targets.targets.items() if role.is_delegated_path(path))
        return catalogue

    def verify_assignment(
        self, payload: bytes, device: str, fleet: str, now: float, *, seen_version: int = 0
    ) -> Assignment:
        """Verify and parse an assignment with the director's key of the last refresh.

        Arguments and errors as `edgekit.trust.assignment.verify_assignment`.
        """
        return verify_assignment(payload, self._top(), device=device, fleet=fleet, now=now, seen_version=seen_version)

    def director_key(self) -> Key:
        """The director's public key in the last refresh; it verifies assignments and commands.

        Raises:
            VerificationError: the trusted metadata does not name exactly one director key.
        """
        top = self._top()
        try:
            (keyid,) = top.get_delegated_role(DIRECTOR).keyids
            return top.get_key(keyid)
        except ValueError as error:
            raise VerificationError("the trusted metadata does not name exactly one director key") from error

    def _note_held(self) -> None:
        trusted = self._refreshed()._trusted_set._trusted_set  # the public iterator gives no names of roles
        self._held.update((role, signed.version) for role, signed in trusted.items())

    def _keys_changed(self, updater: Updater, version: int) -> bool:
        """True if timestamp or snapshot have other keys now than in root `version`."""
        root = updater._trusted_set.root
        # The refresh stores the chain of verified roots here, beginning with the root that it starts from.
        path = self._cache_dir / "root_history" / f"{version}.root.json"
        if version >= root.version or not path.exists():
            return version < root.version
        with _mapped(self._now):
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
    """Calls `fetch` with the file name. A generator, because the library passes errors of a generator through."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch_file = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(f"{_BASE}/").removeprefix(_BASE)
        try:
            yield self._fetch_file(name)
        except NotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from error


@contextlib.contextmanager
def _mapped(now: float) -> Iterator[None]:
    try:
        yield
    except UnsignedMetadataError as error:
        raise SignatureError(f"metadata is not signed by the trusted keys: {error}") from error
    except BadVersionNumberError as error:
        raise DowngradeError(f"metadata has the wrong version: {error}") from error
    except ExpiredMetadataError as error:
        raise ExpiredError(
            f"metadata has expired: {error}; this machine's clock shows {_date(now)}",
            advice="Check this machine's clock, and that the controller runs, which renews the metadata.",
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
    versions = {role: trusted[role].version for role in _ROLES}
    return {**versions, TIME: signed_at(trusted.timestamp)}


def _check_clock(now: float, floor: int, signed: int) -> None:
    """Compare this machine's clock with a time that has certainly passed, and with the time of signing."""
    if now < floor - CLOCK_SKEW_SECONDS:
        raise ClockError(
            f"this machine's clock shows {_date(now)}, but the time is at least {_date(floor)}",
            advice="Set the clock; until then no update is installed.",
        )
    if now < signed - CLOCK_SKEW_SECONDS:
        raise ClockError(
            f"this machine's clock shows {_date(now)}, but the metadata was signed at {_date(signed)}",
            advice="One of the two clocks is wrong. If it is this one, set it. If it was the signing machine's, set "
            "that one and run there: edgekit registry renew. Until then no update is installed.",
        )


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
