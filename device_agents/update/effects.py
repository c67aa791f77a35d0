"""The effects of the UpdateMachine, each safe to repeat, and each outcome turned into one event."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from device_agents.deployment import (
    Activated,
    Cleaned,
    Committed,
    Damaged,
    Deployment,
    Do,
    Downloaded,
    Event,
    Failed,
    Installed,
    Proved,
    Resolved,
    RolledBack,
    Staged,
    State,
    Tested,
    Verified,
    Watched,
)
from device_agents.download.block_fetcher import BlockFetcher
from device_agents.download.block_file import SPARE_BYTES
from device_agents.download.bundle import Download
from device_agents.download.deltas import keep_offers, kept_offers
from device_agents.protocols import Inference, SelfTester, Trust
from device_agents.storage.journal import Journal
from device_agents.storage.slot_check import check_slot
from device_agents.storage.slots import Slots, verify_file
from device_agents.threads import in_thread
from device_agents.update.probation import ProbationLimits, enough, live_faults
from edgekit.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from edgekit.deltas.description import parse_offers
from edgekit.errors import (
    CompatibilityError,
    DiskError,
    EdgekitError,
    ExpiredError,
    MissingExtraError,
    SelfTestError,
    UnavailableError,
    VerificationError,
)
from edgekit.protocols import Clock, Disk
from edgekit.trust.assignment import Entry, check_agrees

log = logging.getLogger(__name__)

INCOMING = "incoming"
WATCH_SECONDS = 0.5
_PASSING = (UnavailableError, ExpiredError)  # expired metadata is renewed by the control side
_LASTING = (DiskError, MissingExtraError)  # of the former, what waiting does not mend
_REFUSED = (VerificationError, CompatibilityError, SelfTestError)


class Effects:
    """Runs effects for every model of the device.

    Args:
        disk: Everything durable.
        journal: For the trusted metadata versions.
        trust: Verified metadata; used by one caller at a time.
        fetcher: Blocks and manifests.
        inference: What answers; told to switch.
        self_test: Judges a staged bundle by its golden samples with a runtime of its own.
        mismatches: Every reason why a manifest does not fit this device.
        clock: Wall time for reports and expiry.
        max_bundle_bytes: A larger bundle is refused.
        download_budget: A deployment may fetch so many times the bytes of its bundle, over all its attempts.
        probation: What live answers must stay within.
    """

    def __init__(
        self,
        *,
        disk: Disk,
        journal: Journal,
        trust: Trust,
        fetcher: BlockFetcher,
        inference: Inference,
        self_test: SelfTester,
        mismatches: Callable[[Manifest], list[str]],
        clock: Clock,
        max_bundle_bytes: int,
        download_budget: float = 3.0,
        probation: ProbationLimits | None = None,
    ) -> None:
        self._disk, self._journal, self._trust, self._fetcher = disk, journal, trust, fetcher
        self._inference, self._self_test, self._mismatches = inference, self_test, mismatches
        self._clock, self._max_bundle_bytes = clock, max_bundle_bytes
        self._download_budget = download_budget
        self._probation = probation or ProbationLimits()
        self._activated: dict[str, dict[str, float]] = {}  # counters by model, when it was activated
        self._fetched: dict[str, int] = {}  # by model, in the attempt that failed
        self._live: dict[str, tuple[str, str]] = {}  # by model, slot and digest
        self.trust_lock = asyncio.Lock()
        self.transfers: Counter[str] = fetcher.counters
        self.unexpected_errors = 0
        self._table: dict[Do, tuple[Callable[[State], Awaitable[None]], type[Event]]] = {
            Do.RESOLVE: (self._resolve, Resolved),
            Do.DOWNLOAD: (self._download, Downloaded),
            Do.VERIFY: (self._verify, Verified),
            Do.STAGE: (self._stage, Staged),
            Do.TEST: (self._test, Tested),
            Do.ACTIVATE: (self._activate, Activated),
            Do.WATCH: (self._watch, Watched),
            Do.PROBE: (self._probe, Proved),
            Do.COMMIT: (self._commit, Committed),
        }

    async def run(self, effect: Do, model: str, state: State) -> Event:
        """Run one effect for the state that was journalled; never raises but when cancelled."""
        try:
            if effect is Do.ROLL_BACK:
                return await self._roll_back(model, state)
            if effect is Do.CLEAN:
                await self._clean(model, state)
                return Cleaned(at=self._clock.wall())
            work, outcome = self._table[effect]
            await work(state)
            return outcome(at=self._clock.wall())
        except EdgekitError as error:
            passing = isinstance(error, _PASSING) and not isinstance(error, _LASTING)
            refused = isinstance(error, _REFUSED) and not passing
            log.warning("%s: %s failed: %s: %s", model, effect.value, type(error).__name__, error)
            fetched = self._fetched.pop(model, 0)
            costly = bool(fetched) or effect not in (Do.RESOLVE, Do.DOWNLOAD)
            return self._failed(error, passing=passing, refused=refused, costly=costly, fetched=fetched)
        except Exception as error:
            # The supervision boundary: a bug met in one model's update must not end the agent, which still serves.
            self.unexpected_errors += 1
            log.exception("%s: %s met an unexpected error", model, effect.value)
            return self._failed(error)

    async def load(self, model: str, installed: Installed) -> None:
        """Make what a slot holds answer.

        Raises:
            DiskError, VerificationError, ManifestError, RuntimeLoadError: it cannot.
        """
        if self._live.get(model) == (installed.slot, installed.digest):
            return
        slots = Slots(self._disk, model)
        manifest = await in_thread(slots.manifest, installed.slot, installed.digest)
        self._live.pop(model, None)  # unknown while it changes, and should the change be given up
        # It passed its test when it was staged, and probation or the look after a start asks the live model again.
        await self._inference.activate(model, manifest, slots.path(installed.slot), compare=False)
        self._live[model] = (installed.slot, installed.digest)

    async def examine(self, model: str, installed: Installed, state: State, *, answering: bool) -> Damaged | None:
        """Hash what a slot holds; None where all of it is whole, or the disk does not say otherwise."""
        try:
            await in_thread(check_slot, self._disk, model, installed)
            return None
        except EdgekitError as error:
            name, message = type(error).__name__, str(error)
        log.error("%s %s is damaged in slot %s: %s", model, installed.version, installed.slot, message)
        fallback = state.previous is not None and await self._whole(model, state.previous)
        at = self._clock.wall()
        return Damaged(
            digest=installed.digest, error=name, message=message, fallback=fallback, answering=answering, at=at
        )

    async def _whole(self, model: str, installed: Installed) -> bool:
        try:
            await in_thread(check_slot, self._disk, model, installed)
        except EdgekitError as error:
            log.warning("%s %s is not whole either: %s", model, installed.version, error)
            return False
        return True

    def _failed(self, error: Exception, **how: Any) -> Failed:
        return Failed(error=type(error).__name__, message=str(error), at=self._clock.wall(), **how)

    async def _resolve(self, state: State) -> None:
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
        self._fetcher.gate.check_open()
        self._fetcher.gate.check_cost(state.fetched)
        await self.refresh()
        async with self.trust_lock:
            target_file = await in_thread(self._trust.find_target, entry.path)
        check_agrees(entry, target_file, seen_release=state.release)
        if entry.length > MAX_MANIFEST_BYTES:
            raise VerificationError(f"manifest has {entry.length} bytes, the limit is {MAX_MANIFEST_BYTES}")
        data = await self._fetcher.blob(deployment.digest, deployment.length, f"manifest {entry.path}")
        self._check(parse_manifest(data), deployment)
        await in_thread(self._keep_manifest, deployment, data)
        offers = parse_offers(target_file.custom if target_file else {})
        await in_thread(keep_offers, self._disk, _incoming(deployment), offers)

    async def refresh(self) -> None:
        """Bring trusted metadata up to date; never back. Raises as `TrustClient.refresh`."""
        async with self.trust_lock:
            await in_thread(self._trust.refresh, self._clock.wall(), self._journal.record.metadata)
            await in_thread(self._journal.note_metadata, self._trust.versions)

    def _check(self, manifest: Manifest, deployment: Deployment) -> None:
        found = (manifest.name, manifest.target, manifest.version)
        expected = (deployment.name, deployment.target, deployment.version)
        if found != expected:
            raise VerificationError(f"manifest says it is {' '.join(found)}, expected {' '.join(expected)}")
        reasons = self._mismatches(manifest)
        if manifest.total_bytes > self._max_bundle_bytes:
            reasons = [*reasons, f"it has {manifest.total_bytes} bytes, this device takes {self._max_bundle_bytes}"]
        if reasons:
            raise CompatibilityError(reasons)

    def _keep_manifest(self, deployment: Deployment, data: bytes) -> None:
        for other in self._disk.list(f"{INCOMING}/{deployment.name}"):
            if other != deployment.digest:
                self._disk.remove(f"{INCOMING}/{deployment.name}/{other}")
        self._disk.write(f"{_incoming(deployment)}/{MANIFEST_NAME}", data)

    def _manifest(self, deployment: Deployment) -> tuple[Manifest, bytes]:
        try:
            data = self._disk.read(f"{_incoming(deployment)}/{MANIFEST_NAME}")
        except FileNotFoundError as error:
            raise DiskError(f"the manifest of {deployment.name} {deployment.version} is gone from the disk") from error
        if hashlib.sha256(data).hexdigest() != deployment.digest:
            raise DiskError(f"the manifest of {deployment.name} {deployment.version} was damaged on the disk")
        return parse_manifest(data), data

    async def _download(self, state: State) -> None:
        deployment = _deployment(state)
        slots = Slots(self._disk, deployment.name)
        manifest, _ = await in_thread(self._manifest, deployment)
        budget = int(self._download_budget * manifest.total_bytes) + SPARE_BYTES - state.fetched
        offers = await in_thread(kept_offers, self._disk, _incoming(deployment))
        download = Download(
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

    async def _verify(self, state: State) -> None:
        deployment = _deployment(state)
        manifest, _ = await in_thread(self._manifest, deployment)
        for entry in manifest.files:
            await in_thread(verify_file, self._disk, f"{_incoming(deployment)}/{entry.path}", entry)

    async def _stage(self, state: State) -> None:
        deployment = _deployment(state)
        _, data = await in_thread(self._manifest, deployment)
        slots = Slots(self._disk, deployment.name)
        await in_thread(slots.stage, state.inactive_slot, data, _incoming(deployment))

    async def _test(self, state: State) -> None:
        deployment = _deployment(state)
        slots = Slots(self._disk, deployment.name)
        manifest = await in_thread(slots.manifest, state.inactive_slot, deployment.digest)
        await self._self_test(manifest, slots.path(state.inactive_slot))

    async def _activate(self, state: State) -> None:
        deployment = _deployment(state)
        slot, good = state.inactive_slot, state.known_good
        await self.load(deployment.name, Installed(slot, deployment.digest, deployment.version, deployment.release))
        self._activated[deployment.name] = self._live_counters(deployment.name)
        await in_thread(Slots(self._disk, deployment.name).point, slot, good.slot if good else "")

    def _live_counters(self, model: str) -> dict[str, float]:
        return dict(self._inference.counters().get(model, {}))

    async def _watch(self, state: State) -> None:
        """Until enough was answered; the machine ends it when its time is over."""
        while True:
            if self._judge_live(_deployment(state), final=False):
                return
            await asyncio.sleep(WATCH_SECONDS)

    def _judge_live(self, deployment: Deployment, *, final: bool) -> bool:
        """True when enough requests were answered. Raises SelfTestError when they are outside the limits."""
        before, now = self._activated.get(deployment.name, {}), self._live_counters(deployment.name)
        faults = live_faults(before, now, self._probation, final=final)
        if faults:
            raise SelfTestError(f"{deployment.name} {deployment.version} failed its probation: " + "; ".join(faults))
        return enough(before, now, self._probation)

    async def _probe(self, state: State) -> None:
        self._judge_live(_deployment(state), final=True)
        await self._inference.self_test(_deployment(state).name)

    async def _commit(self, state: State) -> None:
        assert state.active is not None  # COMMITTING comes after ACTIVATING
        await in_thread(Slots(self._disk, _deployment(state).name).point, state.active.slot, state.active.slot)

    async def _roll_back(self, model: str, state: State) -> Event:
        good = state.known_good
        slot = good.slot if good else ""
        await in_thread(Slots(self._disk, model).point, slot, slot)
        if good is None:
            await self._inference.deactivate(model)
            self._live.pop(model, None)
            return RolledBack(at=self._clock.wall())
        try:
            await self.load(model, good)
        except EdgekitError:
            damaged = await self.examine(model, good, state, answering=False)
            if damaged is None:
                raise  # the slot is whole: whatever it is may pass, and the machine tries again
            return damaged
        return RolledBack(at=self._clock.wall())

    async def _clean(self, model: str, state: State) -> None:
        if state.ending == "retry":
            return  # what was downloaded serves the next attempt
        await in_thread(self._disk.remove, f"{INCOMING}/{model}")
        if state.ending != "succeeded" and state.previous is None:  # else nothing was written into that slot
            await in_thread(Slots(self._disk, model).clear, state.inactive_slot)


def _deployment(state: State) -> Deployment:
    assert state.deployment is not None  # every state with an effect has one
    return state.deployment


def _incoming(deployment: Deployment) -> str:
    return f"{INCOMING}/{deployment.name}/{deployment.digest}"
