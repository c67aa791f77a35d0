"""Runs a bundle beside the active one on the device's own inputs, and counts how often their answers differ.

Answers come from the active bundle only. The other one runs in a process of the lowest priority, rests as long as it
ran, and takes copies of inputs from a short queue; what does not fit there is left out and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from device_agents.inference.request import Request
from device_agents.inference.watch.shadow_rules import LOAD, MEMORY, Judge, obstacle
from device_agents.shadow import ShadowCounts, ShadowTask
from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import ROLE_GOLDEN, Manifest
from edgekit.errors import EdgekitError
from edgekit.mqtt.messages import SHADOW_COMPLETE, SHADOW_TIME, Shadow
from edgekit.protocols import Clock
from edgekit.sealing.opening import read_file
from edgekit.serving.models.manager import ModelManager
from edgekit.serving.models.memory_plan import MemoryBudgetError
from edgekit.serving.models.model import Model
from edgekit.serving.session.preparation import prepare
from edgekit.serving.session.queue import OverloadedError
from edgekit.serving.session.session import Load, Session
from edgekit.tensors import Array
from edgekit.waiting import within

log = logging.getLogger(__name__)

MOST_WAITING = 4
MOST_WAITING_BYTES = 32 * 2**20
NOTE_SECONDS = 60.0
MOST_REST_SECONDS = 1.0


class _Input(NamedTuple):
    """One input that the active bundle has answered: what the client sent, what the model got, and the answer."""

    sent: Mapping[str, Array]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    is_raw: bool
    bytes: int


class _Run:
    """One comparison.

    Args:
        active, candidate: Digests of both bundles.
        counts: Result of earlier runs of the agent.
        clock: Monotonic time.

    Attributes:
        open: True while inputs are taken.
    """

    def __init__(self, active: str, candidate: str, counts: ShadowCounts, clock: Clock) -> None:
        self.active, self.candidate = active, candidate
        self._counts, self._clock, self._begun = counts, clock, clock.monotonic()
        self._waiting: deque[_Input] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self.open = False

    @property
    def counts(self) -> ShadowCounts:
        """The result so far."""
        if self._counts.ended:
            return self._counts
        return msgspec.structs.replace(self._counts, seconds=self.seconds)

    @property
    def seconds(self) -> float:
        """Time that it has taken, in all runs of the agent."""
        return self._counts.seconds + self._clock.monotonic() - self._begun

    def add(self, **more: int) -> None:
        """Raise counts."""
        sums = {name: getattr(self._counts, name) + count for name, count in more.items()}
        self._counts = msgspec.structs.replace(self._counts, **sums)

    def end(self, ended: str) -> None:
        """Set why it ended, as in reports."""
        self._counts = msgspec.structs.replace(self.counts, ended=ended)

    def offer(self, request: Request, outputs: Mapping[str, Array]) -> None:
        """Take a copy of an input and its answer, if there is room; the request that is being answered never fails."""
        is_raw = request.prepared is not None and request.inputs is not request.sent
        size = sum(value.nbytes for part in (request.inputs, outputs) for value in part.values())
        if len(self._waiting) >= MOST_WAITING or self._bytes + size > MOST_WAITING_BYTES:
            self.add(dropped=1)
            return
        try:
            sent = _copied(request.sent) if is_raw else {}
            one = _Input(sent, _copied(request.inputs), _copied(outputs), is_raw, size)
        except MemoryError:
            self.add(dropped=1)
            return
        self._waiting.append(one)
        self._bytes += size
        self._arrived.set()

    async def next(self, seconds: float) -> _Input | None:
        """The next input; None where none came within `seconds`."""
        while not self._waiting:
            self._arrived.clear()
            try:
                await within(seconds, self._arrived.wait())
            except asyncio.TimeoutError:
                return None
        one = self._waiting.popleft()
        self._bytes -= one.bytes
        return one

    def clear(self) -> None:
        """Take no more inputs, and forget those that wait."""
        self.open, self._bytes = False, 0
        self._waiting.clear()


class Shadowing:
    """Compares bundles with the active ones, at most one for each model.

    Args:
        manager: The local models.
        load: Opens the runtime of the bundle that does not answer.
        clock: Time for the limits.
    """

    def __init__(self, manager: ModelManager, load: Load, clock: Clock) -> None:
        self._manager, self._load, self._clock = manager, load, clock
        self._runs: dict[str, _Run] = {}

    def offer(self, request: Request, outputs: Mapping[str, Array]) -> None:
        """Consider a request that the active bundle has answered; returns at once."""
        run = self._runs.get(request.model)
        if run is None or not run.open or not request.usable:
            return
        if request.session is not None and request.session.digest == run.active:
            run.offer(request, outputs)

    def report(self, model: str) -> Shadow | None:
        """The last comparison of a model; None where there was none since the start."""
        run = self._runs.get(model)
        return None if run is None else run.counts.message(run.candidate)

    async def run(self, model: str, manifest: Manifest, folder: Path, task: ShadowTask) -> None:
        """Compare a bundle with the active one until enough inputs are compared, the time is over, or it cannot be.

        Args:
            model: Name of the model.
            manifest, folder: The bundle; it has passed its self-test.
            task: When it ends, and where its result is stored.
        """
        active = self._active(model)
        run = self._runs[model] = _Run(active.digest if active else "", manifest.digest, task.counts, self._clock)
        if task.counts.ended:
            return
        try:
            ended = obstacle(active.manifest if active else None, manifest)
            if not ended and active is not None:
                ended = await self._compare(active, manifest, folder, run, task)
            run.end(ended)
            log.info("%s %s beside the active bundle: %s", model, manifest.version, run.counts)
        finally:
            run.clear()
            await asyncio.shield(task.note(run.counts))

    async def _compare(
        self,
        active: Session,
        manifest: Manifest,
        folder: Path,
        run: _Run,
        task: ShadowTask,
    ) -> str:
        """Load the bundle and compare; returns why that ended, as in reports."""
        try:
            judge = await asyncio.to_thread(_judge, active, manifest)
            async with self._manager.aside(manifest.name, manifest, folder, self._load) as aside:
                run.open = True
                noted = self._clock.monotonic()
                while run.counts.compared < task.inputs:
                    if aside.session is None:
                        return MEMORY
                    left = task.seconds - run.seconds
                    if left <= 0:
                        return SHADOW_TIME
                    one = await run.next(min(left, NOTE_SECONDS))
                    if one is not None:
                        await self._one(run, judge, active, aside, one)
                    if one is None or self._clock.monotonic() - noted >= NOTE_SECONDS:
                        await task.note(run.counts)
                        noted = self._clock.monotonic()
            return SHADOW_COMPLETE
        except MemoryBudgetError as error:
            log.warning("%s", error)
            return MEMORY
        except (EdgekitError, OSError) as error:
            log.warning("%s %s cannot be compared with the active bundle: %s", manifest.name, manifest.version, error)
            return LOAD

    async def _one(self, run: _Run, judge: Judge, active: Session, aside: Model, one: _Input) -> None:
        """Compare the answers to one input, then rest."""
        session = aside.session
        if session is None:
            return
        begun = self._clock.monotonic()
        try:
            given = one.inputs
            if one.is_raw and session.manifest.processing != active.manifest.processing:
                given = (await prepare(lambda: session, one.sent, False)).inputs
            if aside.session is not session:
                return  # unloaded meanwhile
            outputs = await session.run(given)
            rows, differing = await asyncio.to_thread(judge.differing, one.outputs, outputs)
            run.add(compared=rows, differed=differing)
        except OverloadedError:  # its process is being restarted
            run.add(dropped=1)
            await asyncio.sleep(MOST_REST_SECONDS)
        except EdgekitError as error:
            rows = await asyncio.to_thread(judge.failing, one.outputs)
            run.add(compared=rows, differed=rows, failed=rows)
            log.warning("%s %s did not answer an input: %s", run.candidate[:12], session.manifest.version, error)
        await asyncio.sleep(min(MOST_REST_SECONDS, self._clock.monotonic() - begun))

    def _active(self, model: str) -> Session | None:
        entry = self._manager.get(model)
        return None if entry is None or entry.bundle is None else entry.session or entry.last


def _judge(active: Session, manifest: Manifest) -> Judge:
    """The comparison of two bundles; reads the golden answers of the active one."""
    golden = read_file(active.manifest, active.folder, active.manifest.file(ROLE_GOLDEN))
    return Judge(active.manifest, manifest, read_golden(golden)[1])


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value.copy() for name, value in arrays.items()}
