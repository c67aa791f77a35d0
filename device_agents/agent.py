"""The agent: resumes what a restart interrupted, serves, follows the signed assignment, reports, obeys commands."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner, Key

from device_agents.control.commands import Commands
from device_agents.control.crash_events import Crashed, watch_crashes
from device_agents.control.link import ControlLink
from device_agents.control.memory_events import watch_growth
from device_agents.control.requests import Answers
from device_agents.control.telemetry import Window, flatten
from device_agents.deployment import Deployment, Event, Limits, State
from device_agents.download.block_fetcher import BlockFetcher, Gate
from device_agents.download.metered import MeteredLink
from device_agents.download.throttle import QuietHours
from device_agents.protocols import Inference, SelfTester, TrustFactory
from device_agents.storage.journal import Journal
from device_agents.threads import in_thread
from device_agents.update.effects import Effects
from device_agents.update.machine import UpdateMachine
from device_agents.update.probation import ProbationLimits
from device_agents.update.recovery import Recovery
from device_agents.update.runner import Updater
from edgekit.bundle.manifest import NAME, Manifest
from edgekit.errors import DataError, DiskError, EdgekitError, ExpiredError, TransportError, VerificationError
from edgekit.mqtt import messages
from edgekit.protocols import Clock, Disk, Transport
from edgekit.serving.models.memory_growth import Grown, told_text
from edgekit.trust.assignment import Assignment, Entry

log = logging.getLogger(__name__)

ALONE_SECONDS = 3.0
ASSIGNMENT_RETRY_SECONDS = (1.0, 60.0)


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Who the agent is and how long it takes for what; as `edgekit.settings.AgentSettings`."""

    device: str
    fleet: str
    heartbeat_seconds: float = 30.0
    telemetry_seconds: float = 60.0
    max_bundle_bytes: int = 2 * 1024**3
    download_bytes_per_second: int = 0
    download_budget: float = 3.0
    download_urls: bool = True
    quiet_hours: QuietHours | None = None
    metered: MeteredLink = MeteredLink()
    limits: Limits = Limits()
    probation: ProbationLimits = ProbationLimits()


class Agent:
    """One device.

    Args:
        options: Who and how.
        disk: The device's folder.
        journal: On the same disk, its session begun.
        transport: Made with the will of that session; the agent starts and stops it.
        trust: Makes verified metadata, given a blocking function that fetches one metadata file.
        inference: What answers local applications.
        self_test: Judges a staged bundle.
        mismatches: Every reason why a manifest does not fit this device.
        facts: What this device measured of itself, for its reports.
        signer: The device's key.
        clock: Time.
    """

    def __init__(
        self,
        options: AgentOptions,
        *,
        disk: Disk,
        journal: Journal,
        transport: Transport,
        trust: TrustFactory,
        inference: Inference,
        self_test: SelfTester,
        mismatches: Callable[[Manifest], list[str]],
        facts: dict[str, Any],
        signer: CryptoSigner,
        clock: Clock,
    ) -> None:
        self._options, self._journal, self._clock = options, journal, clock
        self._inference, self._facts = inference, facts
        self._answers = Answers(transport, fleet=options.fleet, device=options.device)
        self._trust = trust(self._fetch_metadata)
        gate = Gate(
            clock,
            bytes_per_second=options.download_bytes_per_second,
            quiet=options.quiet_hours,
            metered=options.metered,
        )
        self._effects = Effects(
            disk=disk,
            journal=journal,
            trust=self._trust,
            fetcher=BlockFetcher(self._answers, clock, gate, urls=options.download_urls),
            inference=inference,
            self_test=self_test,
            mismatches=mismatches,
            clock=clock,
            max_bundle_bytes=options.max_bundle_bytes,
            download_budget=options.download_budget,
            probation=options.probation,
        )
        self._link = ControlLink(
            transport,
            device=options.device,
            fleet=options.fleet,
            session=journal.record.session,
            signer=signer,
            clock=clock,
            heartbeat_seconds=options.heartbeat_seconds,
            report=self._report,
        )
        self._commands = Commands(
            options.device,
            options.fleet,
            link=self._link,
            journal=journal,
            inference=inference,
            director_key=self._director_key,
            active=lambda: [name for name, state in self.states.items() if state.active is not None],
            clock=clock,
        )
        self._machine = UpdateMachine(options.limits)
        self._updaters: dict[str, Updater] = {}
        self._recovery = Recovery(journal, self._effects, inference, self._updaters, self._event)
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._wake = asyncio.Event()
        self._told = (b"", "")

    @property
    def states(self) -> dict[str, State]:
        """Update state of each model."""
        return {name: updater.state for name, updater in self._updaters.items()}

    async def start(self) -> None:
        """Take up the journal and make installed models answer; needs no broker.

        Raises:
            DataError: the journal is of another version of the agent.
            DiskError: the disk failed.
        """
        for model, state in self._journal.models().items():
            self._updater(model, state)
            await self._recovery.take_up(model, state)
        for damage in self._journal.damage:
            self._event("journal-damaged", "", "DataError", damage)

    async def run(self) -> None:
        """Connect and work until `stop`; then end in order. Any other end is an error that it raises."""
        self._loop = asyncio.get_running_loop()
        await self._answers.start()
        await self._link.start()
        self._spawn(self._link.say_when_alone(ALONE_SECONDS))
        crashes = watch_crashes(self._inference.counters, self._tell_crash, self._clock)
        growth = watch_growth(self._inference.grown, self._tell_growth)
        for work in (self._link.run(), self._follow_desired(), self._commands.run(), self._send_telemetry()):
            self._spawn(work)
        self._spawn(crashes)
        self._spawn(growth)
        for updater in self._updaters.values():
            self._spawn(updater.run())
        self._spawn(self._recovery.examine_slots())
        try:
            while not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                for task in self._tasks:
                    if task.done():
                        task.result()  # a bug that ended one must not go unseen
        finally:
            self._answers.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._link.stop()
            if self._stopping:
                await in_thread(self._journal.end_session)

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping = True
        self._wake.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._wake.set())
        self._tasks.append(task)

    def _updater(self, model: str, state: State) -> Updater:
        self._updaters[model] = Updater(
            model,
            state,
            machine=self._machine,
            effects=self._effects,
            journal=self._journal,
            clock=self._clock,
            listener=self._stepped,
        )
        return self._updaters[model]

    def _fetch_metadata(self, name: str) -> bytes:
        """One metadata file, for the trust client's thread, by the event loop's connection."""
        if self._loop is None:
            raise TransportError("the agent has not begun to connect")
        return asyncio.run_coroutine_threadsafe(self._answers.metadata(name), self._loop).result()

    async def _director_key(self) -> Key:
        async with self._effects.trust_lock:
            return await in_thread(self._trust.director_key)

    # --- the assignment

    async def _follow_desired(self) -> None:
        first, most = ASSIGNMENT_RETRY_SECONDS
        payload, delay = await self._link.next_desired(), first
        while True:
            again = await self._accept(payload)
            try:
                wait = delay * random.uniform(0.5, 1.0) if again else None
                payload, delay = await self._link.next_desired(wait), first
            except asyncio.TimeoutError:
                delay = min(most, delay * 2)

    async def _accept(self, payload: bytes) -> bool:
        """Offer what the assignment names; True when it is worth another attempt."""
        try:
            assignment = await self._verify(payload)
        except EdgekitError as error:
            log.warning("the assignment is not followed: %s: %s", type(error).__name__, error)
            # What is away comes back by itself; the rest is told, once for each assignment and reason.
            refused = isinstance(error, VerificationError)
            told = (payload, type(error).__name__)
            if (refused or isinstance(error, DiskError | DataError)) and told != self._told:
                self._told = told
                kind = "assignment-refused" if refused else "assignment-delayed"
                self._event(kind, "", type(error).__name__, str(error))
            return not refused or isinstance(error, ExpiredError)
        await self._hold(assignment)
        for name, entry in assignment.entries.items():
            if name not in self._updaters:
                self._spawn(self._updater(name, State()).run())
            self._updaters[name].offer(_to_deployment(entry, assignment.version))
        for name, updater in self._updaters.items():
            if name not in assignment.entries:
                updater.cancel()
        self._link.changed()
        return False

    async def _verify(self, payload: bytes) -> Assignment:
        await self._effects.refresh()
        async with self._effects.trust_lock:
            assignment = await in_thread(
                self._trust.verify_assignment,
                payload,
                self._options.device,
                self._options.fleet,
                self._clock.wall(),
                seen_version=self._journal.record.assignment,
            )
        for name, entry in assignment.entries.items():
            if name != entry.name or not NAME.fullmatch(name):
                raise VerificationError(f"assignment {assignment.version} names a model {name!r} that is no model name")
        await in_thread(self._journal.accept_assignment, assignment.version)
        return assignment

    async def _hold(self, assignment: Assignment) -> None:
        """Follow the fleet's hints: wait while it is paused, and spread what is new."""
        running = {name: state.active.digest if state.active else "" for name, state in self.states.items()}
        if all(running.get(name) == entry.sha256 for name, entry in assignment.entries.items()):
            return
        while self._link.hints.paused:
            log.info("the fleet is paused; assignment %d waits", assignment.version)
            self._link.hints_changed.clear()
            await self._link.hints_changed.wait()
        await asyncio.sleep(random.uniform(0.0, self._link.hints.spread_seconds))

    # --- what is told

    async def _report(self) -> messages.Reported:
        number = await in_thread(self._journal.next_report)
        return messages.Reported(
            device=self._options.device,
            fleet=self._options.fleet,
            number=number,
            at=self._clock.wall(),
            assignment=self._journal.record.assignment,
            models={name: self._running(name, state) for name, state in self.states.items()},
            outcomes={name: state.outcome for name, state in self.states.items() if state.outcome},
            facts=self._facts,
        )

    def _running(self, model: str, state: State) -> messages.Running:
        active = state.active
        if active is None:
            return messages.Running(state=state.name.value)
        provider = self._inference.provider(model)
        return messages.Running(active.digest, active.version, active.since, state.name.value, active.release, provider)

    def _stepped(self, model: str, before: State, after: State, event: Event) -> None:
        if after.outcome is not None and after.outcome != before.outcome:
            outcome = after.outcome
            detail = {"version": outcome.version, "digest": outcome.deployment}
            self._event(f"deployment-{outcome.result}", model, outcome.error, outcome.message, detail)
        if after.note and after.note != before.note:
            error, _, message = after.note.partition(": ")
            self._event("deployment-delayed", model, error, message)
        if after != before:
            self._link.changed()

    def tell_load(self, kind: str, model: str, seconds: float) -> None:
        """Send an event about a load that takes long, as the building of an engine does."""
        self._event(kind, model, "", f"{seconds:.0f} s", {"seconds": round(seconds, 1)})

    def _tell_crash(self, crashed: Crashed) -> None:
        state = self.states.get(crashed.model)
        version = state.active.version if state is not None and state.active is not None else ""
        detail = {"version": version, "crashes": crashed.crashes, "total": crashed.total}
        message = f"the process of {version or 'the model'} crashed: {crashed.crashes}, since the start {crashed.total}"
        self._event("model-crashed", crashed.model, "WorkerCrashedError", message, detail)

    def _tell_growth(self, grown: Grown) -> None:
        message = told_text(grown)
        log.warning("%s", message)
        kind = "model-grown" if grown.model else "agent-grown"
        self._event(kind, grown.model, "", message, {"bytes": grown.bytes, "loaded_bytes": grown.loaded_bytes})

    def _event(self, kind: str, model: str, error: str, message: str, detail: dict[str, Any] | None = None) -> None:
        self._link.event(
            messages.Event(self._options.device, kind, self._clock.wall(), model, error, message, detail or {})
        )

    async def _send_telemetry(self) -> None:
        window = Window(self._options.device, self._clock.monotonic())
        while True:
            await asyncio.sleep(self._options.telemetry_seconds)
            totals, now = self._counters(), self._clock.monotonic()
            try:
                await self._link.telemetry(window.peek(totals, now=now, at=self._clock.wall()))
                window.sent(totals, now=now)
            except TransportError as error:
                log.debug("telemetry waits: %s", error)

    def _counters(self) -> dict[str, float]:
        own = {
            **{f"agent.{name}": float(count) for name, count in self._effects.transfers.items()},
            "agent.foreign_answers": float(self._answers.foreign),
            "agent.malformed_answers": float(self._answers.malformed),
            "agent.unexpected_errors": float(self._effects.unexpected_errors),
        }
        return {**flatten(self._inference.counters()), **own}


def _to_deployment(entry: Entry, assignment: int) -> Deployment:
    return Deployment(
        digest=entry.sha256,
        length=entry.length,
        path=entry.path,
        name=entry.name,
        version=entry.version,
        target=entry.target,
        release=entry.release,
        assignment=assignment,
        downgrade=entry.downgrade,
    )
