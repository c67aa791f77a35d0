"""The agent of one device: resumes after a restart, follows the signed assignment, reports, and runs commands."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any

from securesystemslib.signer import Key

from device_agents.agent_parts import AgentParts
from device_agents.condition.watch import ConditionWatch
from device_agents.control.assignment import AssignmentFollower
from device_agents.control.commands import Commands
from device_agents.control.consent_watch import watch_consents
from device_agents.control.crash_events import watch_crashes
from device_agents.control.events import EventSender
from device_agents.control.link import ControlLink
from device_agents.control.memory_events import watch_growth
from device_agents.control.metadata import MetadataSource
from device_agents.control.numbers import NumberFollower
from device_agents.control.renewal import CertificateParts, CertificateRenewal
from device_agents.control.reports import ReportBuilder
from device_agents.control.requests import RequestClient
from device_agents.control.telemetry import TelemetrySender, flatten
from device_agents.deployment import Deployment, UpdateRecord
from device_agents.download.block_fetcher import BlockFetcher
from device_agents.download.gate import Gate
from device_agents.options import AgentOptions
from device_agents.profiling.profiler import Profiler, remove_measured
from device_agents.remote.self_tests import SelfTests
from device_agents.remote_commands import confirm_settings, handlers_of, notices
from device_agents.spool.running import RunningSpool, link_needed
from device_agents.storage.consents import Consents, asks_consent
from device_agents.storage.slots import Slots
from device_agents.threads import in_thread
from device_agents.update.boot import Boot
from device_agents.update.conditions import Conditions
from device_agents.update.effects import BundleChecks, Effects
from device_agents.update.installed import InstalledModels
from device_agents.update.recovery import Recovery
from device_agents.update.runner import Updater
from device_agents.update.runtime_evidence import RuntimeEvidence
from edgekit.bundle.manifest import NAME_PATTERN
from edgekit.errors import TransportError, VerificationError
from edgekit.transfer.newer_metadata import hinted_models
from edgekit.trust.assignment import Assignment, Entry
from edgekit.trust.client import TIME
from edgekit.trust.state import publisher_role


class Agent:
    """One device: `start` resumes from the journal, `run` works until `stop`.

    Args:
        options: Names, intervals and limits.
        parts: Adapters and services.

    Attributes:
        restarting: True if `run` ended because the agent is to be started again.
    """

    def __init__(self, options: AgentOptions, parts: AgentParts) -> None:
        self._options, self._parts = options, parts
        self._run_id = secrets.token_hex(8)
        self._journal = parts.journal
        self._updaters: dict[str, Updater] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self.restarting = False
        self._follower: AssignmentFollower | None = None
        self._wake = asyncio.Event()
        self._requests = RequestClient(
            parts.transport,
            fleet=options.fleet,
            device=options.device,
            metadata_timeout_seconds=options.timings.metadata_timeout_seconds,
        )
        self._metadata = MetadataSource(self._requests, self._known_metadata)
        self._trust = parts.trust(self._fetch_metadata)
        self._condition = ConditionWatch(parts.condition, lambda: self._link.changed())
        self._link = self._make_link()
        self._events = EventSender(options.device, self._link, parts.clock, lambda: self.states)
        self._consents = Consents(parts.disk)
        self._installed = parts.installed or InstalledModels(
            *(parts.disk, parts.journal, parts.inference, parts.clock),
            limits=options.limits,
            unproven_runtime=options.unproven_runtime,
            arch=str(parts.facts.get("arch", "")),
        )
        self._evidence = self._installed.evidence
        self._effects = self._make_effects()
        self._numbers = self._make_numbers()
        self._spool = self._make_spool()
        self._recovery = Recovery(self._installed, parts.inference, self._updaters)

    def _make_link(self) -> ControlLink:
        options, parts = self._options, self._parts
        reports = ReportBuilder(
            options.device,
            options.fleet,
            journal=parts.journal,
            inference=parts.inference,
            facts=lambda: {**parts.facts, **self._condition.facts, **self._evidence.facts},
            states=lambda: self.states,
            clock=parts.clock,
            held=lambda: self._follower.held if self._follower else {},
            session=parts.journal.record.session,
            run=self._run_id,
            key=bytes.fromhex(parts.signer.public_key.keyval["public"]),
        )
        return ControlLink(
            parts.transport,
            device=options.device,
            fleet=options.fleet,
            session=parts.journal.record.session,
            signer=parts.signer,
            clock=parts.clock,
            heartbeat_seconds=options.heartbeat_seconds,
            report=reports.report,
        )

    def _make_effects(self) -> Effects:
        download, parts = self._options.download, self._parts
        self._gate = gate = Gate(
            parts.clock,
            bytes_per_second=download.download_bytes_per_second,
            quiet=download.quiet_hours,
            metered=download.metered,
        )
        self._fetcher = BlockFetcher(self._requests, parts.clock, gate, urls=download.download_urls)
        return Effects(
            disk=parts.disk,
            journal=parts.journal,
            trust=self._trust,
            fetcher=self._fetcher,
            inference=parts.inference,
            live=self._installed.live,
            checks=BundleChecks(parts.self_test, parts.mismatches, self._options.probation, self._evidence),
            conditions=Conditions(self._consents, parts.clock),
            download=download,
            clock=parts.clock,
        )

    def _make_numbers(self) -> NumberFollower:
        options, parts = self._options, self._parts
        numbers = NumberFollower(
            options.device,
            options.fleet,
            self._run_id,
            transport=parts.transport,
            link=self._link,
            journal=parts.journal,
            own_key=parts.signer.public_key,
            director_key=self._known_director_key,
            events=self._events,
            clock=parts.clock,
        )
        self._requests.on_unasked = numbers.on_unasked
        return numbers

    @property
    def states(self) -> dict[str, UpdateRecord]:
        """Update state of each model that is not uninstalled."""
        return {name: updater.state for name, updater in self._updaters.items() if not updater.state.is_gone}

    @property
    def events(self) -> EventSender:
        """Sends events of this device."""
        return self._events

    @property
    def evidence(self) -> RuntimeEvidence:
        """Judges bundles by the runtime versions of this device."""
        return self._evidence

    async def start(self) -> None:
        """Resume from the journal; installed models answer, if they do not yet. Needs no broker.

        Raises:
            DataError: the journal was written by another version of the agent.
            DiskError: the disk failed.
        """
        await self._installed.start()
        await in_thread(remove_measured, self._parts.disk)
        for model, boot in self._installed.boots.items():
            self._add_updater(model, boot.state, boot)
        self._installed.events.pass_on(self._events)
        for damage in self._journal.damage:
            self._events.send("journal-damaged", "", "DataError", damage)
        for kind, text in notices(self._parts.remote.overlay):
            self._events.send(kind, "", "SettingsError", text)

    async def run(self) -> None:
        """Connect and work until `stop`, then end in order. Any other end is an error, which is raised."""
        self._loop = asyncio.get_running_loop()
        await self._requests.start()
        await self._numbers.start()
        await self._link.start()
        for work in self._work():
            self._spawn(work)
        if self._parts.certificate is not None:
            self._spawn(self._renewal(self._parts.certificate).run())
        for updater in self._updaters.values():
            self._spawn(updater.run())
        self._spawn(self._recovery.examine_slots())
        try:
            while not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                for task in self._tasks:
                    if task.done():
                        task.result()  # raises the error of a task that failed
        finally:
            self._requests.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._link.stop()
            if self._stopping:
                await in_thread(self._journal.end_session)

    async def consent(self, model: str, agreed: bool) -> str:
        """Take the user's answer to the update of a model that asks for an agreement.

        Returns:
            The version of the update.

        Raises:
            NotFoundError: no update of the model asks for one.
            DiskError: the answer cannot be stored.
        """
        deployment = asks_consent(model, self.states.get(model))
        await in_thread(self._consents.put, model, deployment.digest, agreed)
        self._updaters[model].offer(deployment)  # tried at once
        return deployment.version

    async def verify(self, payload: bytes) -> Assignment:
        """Verify an assignment that came another way than from the broker; `run` must be running.

        Raises:
            VerificationError: it is refused.
            UnavailableError: metadata could not be fetched.
        """
        return await self._verify(payload)

    def follow(self, assignment: Assignment) -> None:
        """Follow an assignment that `verify` returned."""
        self._follow(assignment)

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping = True
        self._wake.set()

    def _restart(self) -> None:
        self.restarting = True
        self.stop()

    def _make_commands(self) -> Commands:
        parts = self._parts
        active = lambda: [name for name, state in self.states.items() if state.active is not None]  # noqa: E731
        profiler = None
        if parts.remote.profile is not None:
            profiler = Profiler(
                parts.disk,
                find_target=self._effects.find_target,
                blob=self._fetcher.blob,
                source=self._fetcher,
                counters=self._fetcher.counters,
                check_cost=self._check_cost,
                mismatches=parts.mismatches,
                condition=parts.condition,
                options=parts.remote.profile,
            )
        return Commands(
            self._options.device,
            self._options.fleet,
            link=self._link,
            journal=self._journal,
            handlers=handlers_of(
                parts.remote,
                self_tests=SelfTests(parts.inference, active),
                profiler=profiler,
                collector=parts.spool.collector if parts.spool else None,
            ),
            director_key=self._fresh_director_key,
            restart=self._restart,
            clock=parts.clock,
        )

    def _check_cost(self, fetched: int) -> None:
        self._gate.check_open()
        self._gate.check_cost(fetched)

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        """The tasks that run as long as the agent does, besides the updaters."""
        options, timings, parts = self._options, self._options.timings, self._parts
        inference = parts.inference
        self._follower = follower = AssignmentFollower(
            self._link,
            self._events,
            verify=self._verify,
            states=lambda: self.states,
            withdraw=self._withdraw,
            follow=self._follow,
            clock=parts.clock,
            retry_seconds=timings.assignment_retry_seconds,
        )
        commands = self._make_commands()
        telemetry = TelemetrySender(
            options.device,
            session=parts.journal.record.session,
            link=self._link,
            counters=self._counters,
            take_sketches=lambda: {**inference.take_sketches(), **self._condition.take_sketches()},
            clock=parts.clock,
        )
        return [
            self._link.warn_without_broker(timings.no_broker_seconds),
            self._link.run(),
            follower.run(),
            self._numbers.run(),
            commands.run(),
            telemetry.run(options.telemetry_seconds),
            self._condition.run(timings.condition_survey_seconds),
            self._evidence.run(
                self._effects.find_target,
                parts.transport.wait_connected,
                self._recovery.load_again,
                self._link.changed,
                timings.evidence_survey_seconds,
            ),
            confirm_settings(parts.remote.overlay, parts.transport.wait_connected),
            watch_crashes(
                inference.counters,
                self._events.send_crash,
                parts.clock,
                survey_seconds=timings.crash_survey_seconds,
            ),
            watch_consents(self._consents, lambda: self.states, lambda model, one: self._updaters[model].offer(one)),
            watch_growth(inference.grown, self._events.send_growth, survey_seconds=timings.memory_survey_seconds),
            *(self._spool.work() if self._spool else ()),
        ]

    def _make_spool(self) -> RunningSpool | None:
        parts = self._parts
        if parts.spool is None:
            return None
        return RunningSpool(
            *(self._options.device, self._options.fleet, parts.spool),
            requests=self._requests,
            transport=parts.transport,
            signer=parts.signer,
            needed=lambda: link_needed(self.states, self._gate),
            tell=lambda kind, message: self._events.send(kind, "", "DiskError", message),
        )

    def _renewal(self, certificate: CertificateParts) -> CertificateRenewal:
        return CertificateRenewal(
            self._options.device,
            self._options.fleet,
            certificate,
            requests=self._requests,
            signer=self._parts.signer,
            events=self._events,
            clock=self._parts.clock,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._wake.set())
        self._tasks.append(task)

    def _add_updater(self, model: str, state: UpdateRecord, boot: Boot | None = None) -> Updater:
        self._updaters[model] = Updater(
            model,
            state,
            machine=self._installed.machine,
            effects=self._effects,
            journal=self._journal,
            clock=self._parts.clock,
            listener=self._events.send_step,
            journal_retry_seconds=self._options.timings.journal_retry_seconds,
            boot=boot,
        )
        return self._updaters[model]

    def _fetch_metadata(self, name: str) -> bytes:
        """One metadata file, fetched by the event loop's connection; the trust client calls this in a thread."""
        if self._loop is None:
            raise TransportError("the agent has not begun to connect")
        return asyncio.run_coroutine_threadsafe(self._metadata.file(name), self._loop).result()

    def _known_metadata(self) -> dict[str, int]:
        known = {**self._journal.record.metadata, **self._trust.held}
        return {role: version for role, version in known.items() if role != TIME}

    async def _known_director_key(self) -> Key:
        return await self._effects.director_key(fresh=False)

    async def _fresh_director_key(self) -> Key:
        return await self._effects.director_key(fresh=True)

    async def _verify(self, payload: bytes) -> Assignment:
        self._metadata.need(map(publisher_role, hinted_models(payload)))
        await self._effects.refresh()
        async with self._effects.trust_lock:
            assignment = await in_thread(
                self._trust.verify_assignment,
                payload,
                self._options.device,
                self._options.fleet,
                self._parts.clock.wall(),
                seen_version=self._journal.record.assignment,
            )
        odd = [name for name, entry in assignment.entries.items() if name != entry.name]
        odd += [name for name in (*assignment.entries, *assignment.uninstall) if not NAME_PATTERN.fullmatch(name)]
        if odd:
            raise VerificationError(f"assignment {assignment.version} names a model {odd[0]!r} that is no model name")
        await in_thread(self._journal.accept_assignment, assignment.version)
        return assignment

    def _withdraw(self, assignment: Assignment) -> None:
        """Cancel the updates to bundles that an assignment does not name; what runs stays, and is repaired."""
        for name, updater in self._updaters.items():
            entry, state = assignment.entries.get(name), updater.state
            target = state.offered or state.deployment
            named = entry.sha256 if entry else ""
            if target is not None and target != state.kept and target.digest != named:
                updater.cancel()

    def _follow(self, assignment: Assignment) -> None:
        """Offer each bundle to its updater, remove models to uninstall, and cancel updates without an entry."""
        self._parts.inference.assign(list(assignment.entries))
        for name, entry in assignment.entries.items():
            if name not in self._updaters:
                self._spawn(self._add_updater(name, UpdateRecord()).run())
            self._updaters[name].offer(_to_deployment(entry, assignment.version))
        for name in assignment.uninstall:
            if name not in self._updaters and self._parts.disk.exists(Slots(self._parts.disk, name).root):
                self._spawn(self._add_updater(name, UpdateRecord()).run())  # the journal of the model was lost
        for name, updater in self._updaters.items():
            if name in assignment.uninstall:
                updater.uninstall()
            elif name not in assignment.entries:
                updater.cancel()

    def _counters(self) -> dict[str, float]:
        own = {
            **{f"agent.{name}": float(count) for name, count in self._effects.transfers.items()},
            "agent.foreign_answers": float(self._requests.foreign),
            "agent.malformed_answers": float(self._requests.malformed),
            "agent.dropped_messages": float(self._link.dropped),
            "agent.unexpected_errors": float(self._effects.unexpected_errors),
        }
        return {**flatten(self._parts.inference.counters()), **own, **(self._spool.counters() if self._spool else {})}


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
        consent=entry.consent,
        window=entry.window,
        shadow=max(0, entry.shadow),
        shadow_seconds=entry.shadow_seconds,
    )
