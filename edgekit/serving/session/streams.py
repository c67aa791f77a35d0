"""Requests of a model with state: each stream has its own state, and its requests run in order, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.state import client_inputs, next_state, state_links, without_state, zero_state
from edgekit.errors import DataError
from edgekit.serving.session import sequence as parameters
from edgekit.serving.session.stream_table import Key, StreamLimits, StreamTable
from edgekit.tensors import Array

MAX_STATE_BYTES = 64 * 1024**2  # of the zero state of one request; its rows may be much smaller than their state
_LEAST_TIMER_SECONDS = 0.05


class Calls(NamedTuple):
    """The parts of a session that streams use.

    Attributes:
        run: Runs the model once with all its inputs, in the session's queue; the second argument is the deadline.
        admit: Refuses a request that would be refused later; returns the seconds until its deadline.
        expired: Makes the error of a request whose deadline passed.
        clock: Monotonic seconds.
    """

    run: Callable[[Mapping[str, Array], float | None], Awaitable[dict[str, Array]]]
    admit: Callable[[float | None], float | None]
    expired: Callable[[], Exception]
    clock: Callable[[], float]


class SessionStreams:
    """The streams of one loaded model. The state is kept here, so every copy of the model can run every stream.

    A request that fails, or whose client leaves before the answer, does not change the state: the client may send it
    again. All calls are made on one event loop.

    Args:
        manifest: Manifest of a model with state.
        limits: Limits of the streams.
        calls: The session's functions.

    Attributes:
        limits: Limits of the streams.
        waiting: Requests that wait for an earlier request of their stream.
    """

    def __init__(self, manifest: Manifest, limits: StreamLimits, calls: Calls) -> None:
        self.limits = limits
        self.waiting = 0
        self._calls = calls
        self._links = state_links(manifest.inputs)
        self._specs = {spec.name: spec for spec in client_inputs(manifest.inputs)}
        self._version, self._digest = manifest.version, manifest.digest
        self._table = StreamTable(manifest.name, limits)
        self._lanes: dict[Key, deque[asyncio.Future[None]]] = {}  # accepted requests by stream; the first one runs
        self._drained = asyncio.Event()
        self._drained.set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Open streams."""
        self._table.end_idle(self._calls.clock(), self._lanes)
        return len(self._table)

    async def run(
        self, inputs: Mapping[str, Array], deadline: float | None, place: parameters.Sequence | None
    ) -> dict[str, Array]:
        """Answer one request.

        Args:
            inputs: The inputs that clients send.
            deadline: In seconds of the clock; None for none.
            place: The request's stream; None for a request of its own, from the zero state.

        Raises:
            OverloadedError: too many requests wait, or too many streams are open.
            StreamEndedError: the stream has ended without the client.
            DataError: the inputs do not fit, the stream is not open, or a request of a stream has several rows.
            RuntimeLoadError: the runtime failed.
        """
        rows = self._rows(inputs)
        if place is None:
            self._check_size(rows)
            zero = zero_state(self._links, rows)
            return without_state(self._links, await self._calls.run({**inputs, **zero}, deadline))
        if rows != 1:
            raise DataError(f"the request has {rows} rows, a request of a stream has 1", advice=_ONE_STREAM_EACH)
        async with self._turn(place.id, deadline):
            return await self._step(inputs, deadline, place)

    def follow(self, earlier: SessionStreams) -> None:
        """Take over from the model's earlier session, whose streams end: the next request of each gets the reason."""
        if earlier._digest == self._digest:
            reason = "the model was unloaded and loaded again"
        else:
            reason = f"the model was switched from version {earlier._version} to {self._version}"
        self._table.follow(earlier._table, earlier._lanes, reason)

    async def close(self) -> None:
        """Wait for the accepted requests."""
        await self._drained.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rows(self, inputs: Mapping[str, Array]) -> int:
        """The rows of a request; 1 where no input has a batch. The runtime finds the other faults of inputs."""
        unknown = [name for name in inputs if name not in self._specs]
        if unknown:
            raise DataError(f"input {unknown[0]!r} is unknown, expected {', '.join(self._specs)}")
        for name, value in inputs.items():
            shape = self._specs[name].shape
            if None in shape and len(shape) == value.ndim:
                return int(value.shape[shape.index(None)])
        return 1

    def _check_size(self, rows: int) -> None:
        row_bytes = sum(link.row_bytes for link in self._links)
        if rows > 1 and rows * row_bytes > MAX_STATE_BYTES:
            raise DataError(
                f"the request has {rows} rows, and their state would take {rows * row_bytes} bytes, "
                f"the limit is {MAX_STATE_BYTES}",
                advice=f"Send at most {max(1, MAX_STATE_BYTES // row_bytes)} rows in one request.",
            )

    async def _step(
        self, inputs: Mapping[str, Array], deadline: float | None, place: parameters.Sequence
    ) -> dict[str, Array]:
        """Run the next request of a stream, which has its turn."""
        table, key = self._table, place.id
        with contextlib.ExitStack() as on_error:
            if place.start:
                state = table.start(key, zero_state(self._links, 1), self._calls.clock())
                on_error.callback(table.end, key)
            else:
                state = table.state(key)
            outputs = await self._calls.run({**inputs, **state}, deadline)
            on_error.pop_all()
        if place.end:
            table.end(key)
        else:  # copies, because an output may be a view of a larger array, or given to the caller
            kept = {name: np.array(value) for name, value in next_state(self._links, outputs).items()}
            table.keep(key, kept, self._calls.clock())
            self._wake_in(self.limits.idle_seconds)
        return without_state(self._links, outputs)

    @contextlib.asynccontextmanager
    async def _turn(self, key: Key, deadline: float | None) -> AsyncIterator[None]:
        """Wait until the earlier requests of a stream are answered."""
        left = self._calls.admit(deadline)
        self._table.end_idle(self._calls.clock(), self._lanes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drained.clear()
        lane = self._lanes.setdefault(key, deque())
        lane.append(turn)
        try:
            if lane[0] is not turn:
                await self._wait(turn, left)
            yield
        finally:
            lane.remove(turn)
            if not lane:
                del self._lanes[key]
            elif not lane[0].done():
                lane[0].set_result(None)
            if not self._lanes:
                self._drained.set()

    async def _wait(self, turn: asyncio.Future[None], left: float | None) -> None:
        self.waiting += 1
        try:
            await asyncio.wait((turn,), timeout=left)
        finally:
            self.waiting -= 1
        if not turn.done():
            raise self._calls.expired()

    def _wake_in(self, seconds: float) -> None:
        if self._timer is None:
            delay = max(seconds, _LEAST_TIMER_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(delay, self._end_idle)

    def _end_idle(self) -> None:
        """Free the states of idle streams, also while no request comes."""
        self._timer = None
        next_in = self._table.end_idle(self._calls.clock(), self._lanes)
        if next_in is not None:
            self._wake_in(next_in)


_ONE_STREAM_EACH = "Give each row a stream of its own, or send rows without sequence_id: each then starts from zero."


def open_streams(manifest: Manifest, limits: StreamLimits, calls: Calls) -> SessionStreams | None:
    """The streams of a model; None for a model without state."""
    return SessionStreams(manifest, limits, calls) if state_links(manifest.inputs) else None
