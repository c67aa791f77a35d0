"""Runs one model's UpdateMachine: journals states, runs effects, handles their events, waits for deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from device_agents.deployment import (
    Cancelled,
    Damaged,
    DeadlinePassed,
    Deployment,
    Effect,
    Failed,
    Offered,
    Uninstalled,
    UpdateEvent,
    UpdateRecord,
    removed,
)
from device_agents.storage.journal import Journal
from device_agents.threads import in_thread
from device_agents.update.boot import Boot
from device_agents.update.effects import Effects
from device_agents.update.machine import UpdateMachine, UpdateStep
from edgekit.errors import DiskError, EdgekitError
from edgekit.protocols import Clock
from edgekit.waiting import within

log = logging.getLogger(__name__)

JOURNAL_RETRY_SECONDS = 5.0
Listener = Callable[[str, UpdateRecord, UpdateRecord, UpdateEvent], None]


class Updater:
    """One model's update, from the journalled state on.

    Args:
        model: Name of the model.
        state: Its journalled state; a new one for a new model. After a start, that of `boot`.
        machine: The rules.
        effects: Runs the effects.
        journal: Written before any effect runs.
        clock: Monotonic time for deadlines.
        listener: Called after each step as `listener(model, before, after, event)`.
        journal_retry_seconds: Delay before a failed write of the journal is tried again.
        boot: The start of the agent, which `run` journals first; None for a model that comes later.

    Attributes:
        model, state: Name and present state.
    """

    def __init__(
        self,
        model: str,
        state: UpdateRecord,
        *,
        machine: UpdateMachine,
        effects: Effects,
        journal: Journal,
        clock: Clock,
        listener: Listener,
        journal_retry_seconds: float = JOURNAL_RETRY_SECONDS,
        boot: Boot | None = None,
    ) -> None:
        self.model, self.state = model, state
        self._machine, self._effects, self._journal, self._clock = machine, effects, journal, clock
        self._listener, self._journal_retry_seconds = listener, journal_retry_seconds
        self._inbox: asyncio.Queue[tuple[int | None, UpdateEvent]] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None
        self._generation = 0
        self._boot = boot

    def damaged(self, event: Damaged) -> None:
        """The slot of the active bundle was found damaged."""
        self._inbox.put_nowait((None, event))

    def offer(self, deployment: Deployment) -> None:
        """The assignment names this bundle."""
        self._inbox.put_nowait((None, Offered(deployment, at=self._clock.wall())))

    def cancel(self) -> None:
        """The assignment names no bundle for this model."""
        self._inbox.put_nowait((None, Cancelled(at=self._clock.wall())))

    def uninstall(self) -> None:
        """The assignment says that the model is to be removed."""
        self._inbox.put_nowait((None, Uninstalled(at=self._clock.wall())))

    async def run(self) -> None:
        """Handle events until cancelled. A running effect is then cancelled; the next start runs it again."""
        try:
            if self._boot is not None and self._boot.step is not None:
                begun, step = self._boot.step
                await self._note(self._boot.before, begun, step)
                self._start(step.effects)
            while True:
                event = await self._next()
                if isinstance(event, Uninstalled):
                    await self._uninstall(event)
                elif event is not None and not (self.state.is_gone and isinstance(event, Damaged)):
                    await self._handle(event)  # a check of the slots may end after their removal
        finally:
            await self._stop_running()

    async def _next(self) -> UpdateEvent | None:
        """The next event: from outside, from the running effect, or the deadline; None for one of an older effect."""
        deadline = self.state.deadline
        timeout = None if deadline is None else max(0.0, deadline - self._clock.monotonic())
        try:
            generation, event = await within(timeout, self._inbox.get())
        except asyncio.TimeoutError:
            return DeadlinePassed(at=self._clock.wall())
        return event if generation in (None, self._generation) else None

    async def _handle(self, event: UpdateEvent) -> None:
        before = self.state.name
        effects = await self._step(event)
        if effects or self.state.name is not before:
            # The running effect belongs to the previous state. It must end before another one uses the same files.
            await self._stop_running()
            self._start(effects)

    async def _uninstall(self, event: Uninstalled) -> None:
        """Stop the model's update, whatever its state, and remove the model; tried again until the disk allows it."""
        await self._stop_running()
        before, after = self.state, removed(self.state)
        while True:
            try:
                await self._effects.uninstall(self.model, keep=None if before == after else after)
                break
            except EdgekitError as error:
                log.error("%s: cannot be uninstalled now: %s", self.model, error)
                await asyncio.sleep(self._journal_retry_seconds)
        self.state = after
        if before != after:
            log.info("%s: uninstalled", self.model)
            self._listener(self.model, before, after, event)

    async def _step(self, event: UpdateEvent) -> tuple[Effect, ...]:
        """Journal the state that follows from `event`; no effect runs before the journal is durable."""
        before = self.state
        step = self._machine.step(before, event, self._clock.monotonic())
        await self._note(before, event, step)
        return step.effects

    async def _note(self, before: UpdateRecord, event: UpdateEvent, step: UpdateStep) -> None:
        if step.state != before:
            await self._save(step.state)
        self.state = step.state
        if step.state.name is not before.name:
            log.info("%s: %s -> %s", self.model, before.name.value, step.state.name.value)
        self._listener(self.model, before, step.state, event)

    async def _save(self, state: UpdateRecord) -> None:
        while True:
            try:
                await in_thread(self._journal.save, self.model, state)
                return
            except DiskError as error:
                # Without a journalled state a restart could leave neither bundle usable, so the update waits.
                log.error("%s: the journal cannot be written, waiting: %s", self.model, error)
                await asyncio.sleep(self._journal_retry_seconds)

    def _start(self, effects: tuple[Effect, ...]) -> None:
        if effects:
            self._generation += 1
            self._running = asyncio.create_task(self._run_effects(effects, self._generation, self.state))

    async def _run_effects(self, effects: tuple[Effect, ...], generation: int, state: UpdateRecord) -> None:
        for effect in effects:
            event = await self._effects.run(effect, self.model, state)
            if effect is effects[-1] or isinstance(event, Failed):
                self._inbox.put_nowait((generation, event))
                return

    async def _stop_running(self) -> None:
        running, self._running = self._running, None
        self._generation += 1
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
