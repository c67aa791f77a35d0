"""Runs the effects of the UpdateMachine. Each effect is safe to repeat, and ends in one event."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from securesystemslib.signer import Key
from tuf.api.metadata import TargetFile

from device_agents.deployment import (
    Activated,
    Cleaned,
    Committed,
    Deployment,
    Downloaded,
    Effect,
    Failed,
    Installed,
    Proved,
    Resolved,
    RolledBack,
    Shadowed,
    Staged,
    Tested,
    UpdateEvent,
    UpdateRecord,
    Verified,
    Watched,
)
from device_agents.download.block_fetcher import BlockFetcher
from device_agents.download.block_file import SPARE_BYTES
from device_agents.download.bundle import BundleDownload
from device_agents.download.deltas import load_offers, save_offers
from device_agents.download.options import DownloadOptions
from device_agents.protocols import Inference, SelfTester, Trust
from device_agents.shadow import ShadowTask
from device_agents.storage.journal import Journal
from device_agents.storage.shadow_counts import StoredCounts
from device_agents.storage.slots import Slots, verify_file
from device_agents.threads import in_thread
from device_agents.update.conditions import Conditions
from device_agents.update.live import LiveBundles
from device_agents.update.probation import ProbationLimits, enough, live_faults
from device_agents.update.runtime_evidence import RuntimeEvidence
from edgekit.bundle.evidence import Evidence, parse_evidence
from edgekit.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from edgekit.deltas.description import parse_offers
from edgekit.errors import (
    CompatibilityError,
    DiskError,
    EdgekitError,
    ExpiredError,
    MissingExtraError,
    PacketTooLargeError,
    SelfTestError,
    ShortageError,
    UnavailableError,
    VerificationError,
)
from edgekit.protocols import Clock, Disk
from edgekit.trust.assignment import Entry, check_agrees

log = logging.getLogger(__name__)

INCOMING = "incoming"
WATCH_SECONDS = 0.5
FRESH_SECONDS = 5.0  # so long after a refresh, a target that the catalogue has needs no other one
_TEMPORARY = (UnavailableError, ExpiredError)  # the controller renews expired metadata
# Kinds of UnavailableError that another attempt does not solve.
_PERMANENT = (DiskError, MissingExtraError, PacketTooLargeError)
_REFUSED = (VerificationError, CompatibilityError, SelfTestError)


class BundleChecks(NamedTuple):
    """The checks that a bundle must pass on this device.

    Attributes:
        self_test: Tests a staged bundle on its golden samples, in a runtime of its own.
        mismatches: Gives every reason why a manifest does not fit this device.
        probation: Limits for live answers in probation.
        evidence: Judges the version of the runtime; None where it is not judged.
    """

    self_test: SelfTester
    mismatches: Callable[[Manifest], list[str]]
    probation: ProbationLimits = ProbationLimits()
    evidence: RuntimeEvidence | None = None


class Effects:
    """Runs effects for every model of the device.

    Args:
        disk: The device's folder.
        journal: Notes the trusted metadata versions.
        trust: Verified metadata; used by one caller at a time.
        fetcher: Fetches blocks and manifests.
        inference: Answers local applications.
        live: Switches it to a new bundle.
        checks: The checks of a bundle.
        conditions: Checks what the assignment sets as conditions.
        download: Limits of downloads.
        clock: Wall time for reports and expiry.

    Attributes:
        trust_lock: Held by the one caller that uses `trust`.
        transfers: Transfer counters of the fetcher.
        unexpected_errors: Count of effects that ended in an unexpected error.
    """

    def __init__(
        self,
        *,
        disk: Disk,
        journal: Journal,
        trust: Trust,
        fetcher: BlockFetcher,
        inference: Inference,
        live: LiveBundles,
        checks: BundleChecks,
        conditions: Conditions,
        download: DownloadOptions,
        clock: Clock,
    ) -> None:
        self._disk, self._journal, self._trust, self._fetcher = disk, journal, trust, fetcher
        self._inference, self._checks, self._download_options, self._clock = inference, checks, download, clock
        self._conditions, self._live = conditions, live
        self._activated: dict[str, dict[str, float]] = {}  # model -> its counters at the activation
        self._fetched: dict[str, int] = {}  # model -> bytes that the present attempt has fetched
        self._refreshed = float("-inf")  # monotonic seconds of the last refresh
        self.trust_lock = asyncio.Lock()
        self.transfers: Counter[str] = fetcher.counters
        self.unexpected_errors = 0
        self._table: dict[Effect, tuple[Callable[[UpdateRecord], Awaitable[None]], type[UpdateEvent]]] = {
            Effect.RESOLVE: (self._resolve, Resolved),
            Effect.DOWNLOAD: (self._download, Downloaded),
            Effect.VERIFY: (self._verify, Verified),
            Effect.STAGE: (self._stage, Staged),
            Effect.TEST: (self._test, Tested),
            Effect.SHADOW: (self._shadow, Shadowed),
            Effect.ACTIVATE: (self._activate, Activated),
            Effect.WATCH: (self._watch, Watched),
            Effect.PROBE: (self._probe, Proved),
            Effect.COMMIT: (self._commit, Committed),
        }

    async def run(self, effect: Effect, model: str, state: UpdateRecord) -> UpdateEvent:
        """Run one effect for the journalled state. Every error becomes a Failed event; only cancelling raises."""
        try:
            if effect is Effect.ROLL_BACK:
                return await self._roll_back(model, state)
            if effect is Effect.CLEAN:
                await self._clean(model, state)
                return Cleaned(at=self._clock.wall())
            work, outcome = self._table[effect]
            await work(state)
            return outcome(at=self._clock.wall())
        except EdgekitError as error:
            waiting = error.waiting if isinstance(error, UnavailableError) else ""
            passing = bool(waiting) or isinstance(error, ShortageError)
            passing = passing or (isinstance(error, _TEMPORARY) and not isinstance(error, _PERMANENT))
            refused = isinstance(error, _REFUSED) and not passing
            log.warning("%s: %s failed: %s: %s", model, effect.value, type(error).__name__, error)
            fetched = self._fetched.pop(model, 0)
            costly = bool(fetched) or effect not in (Effect.RESOLVE, Effect.DOWNLOAD)
            how = {"passing": passing, "refused": refused, "costly": costly, "fetched": fetched, "waiting": waiting}
            return self._failed(error, **how)
        except Exception as error:
            # The boundary of the update: a bug in one model's update must not end the agent, which serves other models.
            self.unexpected_errors += 1
            log.exception("%s: %s met an unexpected error", model, effect.value)
            return self._failed(error)

    async def uninstall(self, model: str, *, keep: UpdateRecord | None) -> None:
        """Stop answering for a model, and remove its files. The journal comes first: a cut leaves unused files at most.

        Args:
            model: Name of the model.
            keep: What the journal keeps; None where it has that already.

        Raises:
            DiskError: the disk failed; the model does not answer, and another attempt removes the rest.
        """
        await self._live.unload(model)
        for known in (self._activated, self._fetched):
            known.pop(model, None)
        if keep is not None:
            await in_thread(self._journal.save, model, keep)
        await in_thread(self._conditions.forget, model)
        if self._checks.evidence is not None:
            await self._checks.evidence.forget(model)
        for folder in (f"{INCOMING}/{model}", Slots(self._disk, model).root):
            await in_thread(self._disk.remove, folder)

    def _failed(self, error: Exception, **how: Any) -> Failed:
        return Failed(error=type(error).__name__, message=str(error), at=self._clock.wall(), **how)

    async def _resolve(self, state: UpdateRecord) -> None:
        deployment = _deployment(state)
        entry = Entry(
            path=deployment.path,
            length=deployment.length,
            sha256=deployment.digest,
            name=deployment.name,
            target=deployment.target,
            version=deployment.version,
            release=deployment.release,
            downgrade=deployment.downgrade,
        )
        self._fetched.pop(deployment.name, None)
        await self._conditions.check(deployment)
        self._fetcher.gate.check_open()
        self._fetcher.gate.check_cost(state.fetched)
        target_file = await self.find_target(entry.path)
        check_agrees(entry, target_file, seen_release=state.release, seen_version=state.highest)
        if entry.length > MAX_MANIFEST_BYTES:
            raise VerificationError(f"manifest has {entry.length} bytes, the limit is {MAX_MANIFEST_BYTES}")
        data = await self._fetcher.blob(
            deployment.digest,
            deployment.length,
            f"manifest {entry.path}",
            count=lambda size: self._note_fetched(deployment.name, size),
        )
        self._fetched.pop(deployment.name, None)
        manifest, custom = parse_manifest(data), target_file.custom if target_file else {}
        evidence = parse_evidence(custom)
        self._check(manifest, deployment, evidence)
        await in_thread(self._save_manifest, deployment, data)
        if self._checks.evidence is not None:
            await self._checks.evidence.keep(manifest, evidence)
        offers = parse_offers(custom)
        await in_thread(save_offers, self._disk, _incoming(deployment), offers)

    async def find_target(self, path: str) -> TargetFile | None:
        """The entry of the fresh catalogue for a path; None if there is none. Raises as `TrustClient.refresh`.

        The assignment that names the path was verified with a refresh of its own, often just now: that one counts.
        """
        async with self.trust_lock:
            fresh = self._clock.monotonic() - self._refreshed < FRESH_SECONDS
            found = await in_thread(self._trust.find_target, path) if fresh else None
            if found is None:
                await self._refresh()
                found = await in_thread(self._trust.find_target, path)
            return found

    def _note_fetched(self, model: str, size: int) -> None:
        self._fetched[model] = self._fetched.get(model, 0) + size

    async def refresh(self) -> None:
        """Fetch newer trusted metadata, and note its versions in the journal. Raises as `TrustClient.refresh`."""
        async with self.trust_lock:
            await self._refresh()

    async def director_key(self, *, fresh: bool) -> Key:
        """The director's key in the trusted metadata.

        Args:
            fresh: Fetch newer metadata first. A key that was rotated, because it was stolen for example, is then not
                believed any more, and its successor is. Else only if none was fetched since the start.

        Raises:
            EdgekitError: as `refresh`.
        """
        async with self.trust_lock:
            if fresh or self._refreshed == float("-inf"):
                await self._refresh()
            return await in_thread(self._trust.director_key)

    async def _refresh(self) -> None:
        self._refreshed = float("-inf")
        await in_thread(self._trust.refresh, self._clock.wall(), self._journal.record.metadata)
        self._refreshed = self._clock.monotonic()
        await in_thread(self._journal.note_metadata, self._trust.versions)

    def _check(self, manifest: Manifest, deployment: Deployment, evidence: tuple[Evidence, ...]) -> None:
        found = (manifest.name, manifest.target, manifest.version)
        expected = (deployment.name, deployment.target, deployment.version)
        if found != expected:
            raise VerificationError(f"manifest says it is {' '.join(found)}, expected {' '.join(expected)}")
        reasons, limit = self._checks.mismatches(manifest), self._download_options.max_bundle_bytes
        if manifest.total_bytes > limit:
            reasons = [*reasons, f"it has {manifest.total_bytes} bytes, this device takes {limit}"]
        if not reasons and self._checks.evidence is not None:
            reasons = self._checks.evidence.check_update(manifest, evidence)
        if reasons:
            raise CompatibilityError(reasons)

    def _save_manifest(self, deployment: Deployment, data: bytes) -> None:
        for other in self._disk.list(f"{INCOMING}/{deployment.name}"):
            if other != deployment.digest:
                self._disk.remove(f"{INCOMING}/{deployment.name}/{other}")
        self._disk.write(f"{_incoming(deployment)}/{MANIFEST_NAME}", data)

    def _manifest(self, deployment: Deployment) -> tuple[Manifest, bytes]:
        try:
            data = self._disk.read(f"{_incoming(deployment)}/{MANIFEST_NAME}")
        except FileNotFoundError as error:
            raise DiskError(f"the manifest of {deployment.name} {deployment.version} is missing on the disk") from error
        if hashlib.sha256(data).hexdigest() != deployment.digest:
            raise DiskError(f"the manifest of {deployment.name} {deployment.version} was damaged on the disk")
        return parse_manifest(data), data

    async def _download(self, state: UpdateRecord) -> None:
        deployment = _deployment(state)
        slots = Slots(self._disk, deployment.name)
        manifest, _ = await in_thread(self._manifest, deployment)
        budget = int(self._download_options.download_budget * manifest.total_bytes) + SPARE_BYTES - state.fetched
        offers = await in_thread(load_offers, self._disk, _incoming(deployment))
        download = BundleDownload(
            self._disk,
            self._fetcher,
            self.transfers,
            budget=budget,
            offers=offers,
            check_cost=lambda fetched: self._fetcher.gate.check_cost(state.fetched + fetched),
        )
        try:
            await download.run(manifest, _incoming(deployment), make_room=lambda: slots.clear(state.inactive_slot))
        finally:
            self._fetched[deployment.name] = download.fetched

    async def _verify(self, state: UpdateRecord) -> None:
        deployment = _deployment(state)
        manifest, _ = await in_thread(self._manifest, deployment)
        for entry in manifest.files:
            await in_thread(verify_file, self._disk, f"{_incoming(deployment)}/{entry.path}", entry)

    async def _stage(self, state: UpdateRecord) -> None:
        deployment = _deployment(state)
        _, data = await in_thread(self._manifest, deployment)
        slots = Slots(self._disk, deployment.name)
        await in_thread(slots.stage, state.inactive_slot, data, _incoming(deployment))

    async def _test(self, state: UpdateRecord) -> None:
        deployment = _deployment(state)
        self._conditions.check_window(deployment)  # a long download may have ended after the window
        slots = Slots(self._disk, deployment.name)
        manifest = await in_thread(slots.manifest, state.inactive_slot, deployment.digest)
        await self._checks.self_test(manifest, slots.path(state.inactive_slot))

    async def _shadow(self, state: UpdateRecord) -> None:
        """Compare the staged bundle with the active one, from where an earlier run of the agent stopped."""
        deployment = _deployment(state)
        slots = Slots(self._disk, deployment.name)
        manifest = await in_thread(slots.manifest, state.inactive_slot, deployment.digest)
        stored = StoredCounts(self._disk, _incoming(deployment))
        counts = await in_thread(stored.read)
        task = ShadowTask(deployment.shadow, deployment.shadow_seconds, counts, stored.note)
        await self._inference.shadow(deployment.name, manifest, slots.path(state.inactive_slot), task)

    async def _activate(self, state: UpdateRecord) -> None:
        deployment = _deployment(state)
        slot, good = state.inactive_slot, state.known_good
        await self._live.load(
            deployment.name, Installed(slot, deployment.digest, deployment.version, deployment.release)
        )
        self._activated[deployment.name] = self._live_counters(deployment.name)
        await in_thread(Slots(self._disk, deployment.name).point, slot, good.slot if good else "")

    def _live_counters(self, model: str) -> dict[str, float]:
        return dict(self._inference.counters().get(model, {}))

    async def _watch(self, state: UpdateRecord) -> None:
        """Wait until enough live requests are answered; the machine ends probation when its time is over."""
        while True:
            if self._judge_live(_deployment(state), final=False):
                return
            await asyncio.sleep(WATCH_SECONDS)

    def _judge_live(self, deployment: Deployment, *, final: bool) -> bool:
        """True when enough live requests are answered. Raises SelfTestError when they are outside the limits."""
        before, now = self._activated.get(deployment.name, {}), self._live_counters(deployment.name)
        limits = self._checks.probation
        faults = live_faults(before, now, limits, final=final)
        if faults:
            raise SelfTestError(f"{deployment.name} {deployment.version} failed its probation: " + "; ".join(faults))
        return enough(before, now, limits)

    async def _probe(self, state: UpdateRecord) -> None:
        self._judge_live(_deployment(state), final=True)
        await self._inference.self_test(_deployment(state).name)

    async def _commit(self, state: UpdateRecord) -> None:
        assert state.active is not None  # COMMITTING comes after ACTIVATING
        await in_thread(Slots(self._disk, _deployment(state).name).point, state.active.slot, state.active.slot)

    async def _roll_back(self, model: str, state: UpdateRecord) -> UpdateEvent:
        good = state.known_good
        slot = good.slot if good else ""
        await in_thread(Slots(self._disk, model).point, slot, slot)
        if good is None:
            await self._live.unload(model)
            return RolledBack(at=self._clock.wall())
        try:
            await self._live.load(model, good)
        except EdgekitError:
            damaged = await self._live.examine(model, good, state, answering=False)
            if damaged is None:
                raise  # the slot is whole, so the error may be temporary; the machine tries again
            return damaged
        return RolledBack(at=self._clock.wall())

    async def _clean(self, model: str, state: UpdateRecord) -> None:
        if state.ending == "retry":
            return  # the next attempt uses the downloaded blocks
        await in_thread(self._disk.remove, f"{INCOMING}/{model}")
        if state.ending != "succeeded" and state.previous is None:  # otherwise the inactive slot was not written
            await in_thread(Slots(self._disk, model).clear, state.inactive_slot)


def _deployment(state: UpdateRecord) -> Deployment:
    assert state.deployment is not None  # every state with an effect has one
    return state.deployment


def _incoming(deployment: Deployment) -> str:
    return f"{INCOMING}/{deployment.name}/{deployment.digest}"
