"""The test of drift of the active bundles: takes samples of what they answer, and tells what differs."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from device_agents.inference.watch.references import read_reference
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.sample_rows import from_layout
from edgekit.drift.monitor import Drift, Monitor, Stored
from edgekit.drift.statistics import answer_statistics, input_statistics
from edgekit.errors import DiskError, EdgekitError
from edgekit.protocols import Clock, Disk
from edgekit.serving.session.session import Session
from edgekit.tensors import Array

_log = logging.getLogger(__name__)

FILE_NAME = "drift.json"
STORE_SECONDS = 600.0
DRIFT, DRIFT_ENDED = "drift", "drift-ended"

Listener = Callable[[str, str, str, str, dict[str, Any]], None]


class DriftWatch:
    """Tests the inputs and answers of each model with a reference in its bundle.

    Args:
        seconds: Shortest time between two samples of a model; 0 tests nothing.
        error: Probability that the test of a bundle ever finds a drift where there is none.
        clock: Time.
        disk: The device's folder; None where what was counted is forgotten at a restart.
        draw: Gives random numbers from 0 to below 1.
    """

    def __init__(
        self,
        seconds: float,
        error: float,
        clock: Clock,
        disk: Disk | None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._seconds, self._error, self._clock, self._disk, self._draw = seconds, error, clock, disk, draw
        self._monitors: dict[str, Monitor] = {}
        self._due: dict[str, float] = {}  # when the next sample of a model may be taken; monotonic seconds
        self._kept = self._read()
        self._store_at = clock.monotonic() + STORE_SECONDS
        self._listener: Listener | None = None
        self._untold: list[tuple[str, str, str, str, dict[str, Any]]] = []
        self._write: asyncio.Future[None] | None = None

    def listen(self, listener: Listener) -> None:
        """Call ``listener(kind, model, error, message, detail)`` when a subject begins or ceases to differ."""
        self._listener = listener
        while self._untold:
            listener(*self._untold.pop(0))

    def take(self, model: str, manifest: Manifest, folder: Path) -> None:
        """Begin the test of a bundle that is now active, or continue it; what differed of another bundle has ended."""
        if not self._seconds:
            self._end_all(model, self._kept.pop(model, None), "the test is switched off")
            return
        before = self._monitors.get(model)
        if before is not None and before.digest == manifest.digest:
            return  # activated again
        kept = before.stored() if before is not None else self._kept.pop(model, None)
        self._monitors.pop(model, None)
        monitor = self._open(model, manifest, folder)
        if monitor is not None:
            self._monitors[model] = monitor
            if kept is not None and monitor.resume(kept):
                for subject, message in monitor.open.items():  # an event may have been lost with the process
                    self._tell(DRIFT, model, subject, message, {"subject": subject, "again": True})
                kept = None
        self._end_all(model, kept, f"version {manifest.version} runs now")
        if monitor is not None:
            self._store()  # the new numbers of windows that were resumed

    def forget(self, model: str) -> None:
        """End the test of a model that is no longer active."""
        monitor = self._monitors.pop(model, None)
        self._end_all(model, monitor.stored() if monitor is not None else None, "the model is no longer active")

    def wants(self, model: str, now: float) -> bool:
        """True where a sample of the model may be taken; `now` is monotonic seconds."""
        return model in self._monitors and now >= self._due.get(model, now)

    def sample(self, model: str, session: Session, inputs: Mapping[str, Array], local: Mapping[str, Array]) -> None:
        """Count one row of a request that the local model answered.

        Args:
            model: Its name.
            session: What answered.
            inputs, local: Logical inputs, and the local model's outputs, whatever the client got.
        """
        monitor, now = self._monitors.get(model), self._clock.monotonic()
        if monitor is None or monitor.digest != session.digest:
            return
        self._due[model] = now + self._seconds
        samples = {spec.name: from_layout(spec, inputs[spec.name]) for spec in session.inputs if spec.name in inputs}
        answers = {spec.name: from_layout(spec, local[spec.name]) for spec in session.outputs if spec.name in local}
        rows = min((len(one) for one in (*samples.values(), *answers.values())), default=0)
        if not rows:
            return
        row = int(self._draw() * rows)
        values = answer_statistics(session.manifest.task, {key: one[row : row + 1] for key, one in answers.items()})
        for name, one in samples.items():
            values |= input_statistics(name, np.asarray(one[row]), self._draw)
        found = monitor.add(values, self._draw)
        for drift in found:
            self._tell_drift(model, drift)
        if found or now >= self._store_at:
            self._store()

    def gauges(self, model: str) -> dict[str, float]:
        """`drifting`: subjects of a model that differ; `drift_samples`: samples so far. Empty where none is tested."""
        monitor = self._monitors.get(model)
        return {} if monitor is None else {"drifting": len(monitor.open), "drift_samples": monitor.samples}

    async def close(self) -> None:
        """Write what was counted."""
        if self._monitors or self._kept:
            self._store()
        if self._write is not None:
            await self._write

    def _open(self, model: str, manifest: Manifest, folder: Path) -> Monitor | None:
        try:
            reference = read_reference(manifest, folder)
            return None if reference is None else Monitor(manifest.digest, reference, self._error)
        except (EdgekitError, OSError) as error:
            _log.warning("model %s: drift is not tested, its reference cannot be used: %s", model, error)
            return None

    def _tell_drift(self, model: str, drift: Drift) -> None:
        if not drift.differs:
            self._tell_end(model, drift.subject, drift.message)
            return
        detail = {
            "subject": drift.subject,
            "statistic": drift.statistic,
            "samples": drift.samples,
            "moved": round(drift.moved, 3),
        }
        self._tell(DRIFT, model, drift.subject, drift.message, detail)

    def _end_all(self, model: str, ended: Stored | None, why: str) -> None:
        """Tell that everything has ended that differed in a test which is over, and forget its counts."""
        if ended is None:
            return
        for subject in ended.open:
            self._tell_end(model, subject, why)
        self._store()

    def _tell_end(self, model: str, subject: str, why: str) -> None:
        self._tell(DRIFT_ENDED, model, "", f"drift of {subject} has ended: {why}", {"subject": subject})

    def _tell(self, kind: str, model: str, subject: str, message: str, detail: dict[str, Any]) -> None:
        _log.warning("model %s: %s", model, message)
        told = (kind, model, subject, message, detail)
        if self._listener is None:
            self._untold.append(told)
        else:
            self._listener(*told)

    def _store(self) -> None:
        """Write the counts in a thread; a request does not wait for the disk."""
        if self._disk is None:
            return
        self._store_at = self._clock.monotonic() + STORE_SECONDS
        data = msgspec.json.encode({**self._kept, **{name: one.stored() for name, one in self._monitors.items()}})
        before = self._write

        async def write() -> None:
            if before is not None:
                await before
            await asyncio.to_thread(self._write_file, data)

        self._write = asyncio.ensure_future(write())

    def _write_file(self, data: bytes) -> None:
        assert self._disk is not None
        try:
            self._disk.write(FILE_NAME, data)
        except DiskError as error:
            _log.warning("what the test of drift counted cannot be stored; a restart forgets it: %s", error)

    def _read(self) -> dict[str, Stored]:
        try:
            if self._disk is not None and self._disk.exists(FILE_NAME):
                return msgspec.json.decode(self._disk.read(FILE_NAME), type=dict[str, Stored])
        except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("%s cannot be read, the tests of drift begin anew: %s", FILE_NAME, error)
        return {}
