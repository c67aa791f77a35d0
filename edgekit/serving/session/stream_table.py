"""The open streams of one model with their states: which request may go on, and when a stream ends. Rules only."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from edgekit.errors import DataError
from edgekit.serving.session.queue import MIN_RETRY_SECONDS, OverloadedError
from edgekit.serving.session.sequence import START
from edgekit.tensors import Array

Key = int | str
State = Mapping[str, Array]

MAX_ENDED = 1024  # ended streams whose reason is kept for their next request


class StreamLimits(NamedTuple):
    """Limits of the streams of one model.

    Attributes:
        streams: Most open streams.
        idle_seconds: A stream without a request for so long ends.
    """

    streams: int = 64
    idle_seconds: float = 60.0


class StreamEndedError(DataError):
    """The stream of a request has ended, and not by the client; its state is lost.

    Args:
        key: The client's id of the stream.
        model: Name of the model.
        reason: Why it ended.
    """

    def __init__(self, key: Key, model: str, reason: str) -> None:
        super().__init__(
            f"stream {key!r} of model {model} has ended: {reason}; begin it again with {START} true",
            advice=f"Send {START} true with the next request; the model then has no memory of earlier requests.",
        )


class _Stream(NamedTuple):
    state: State
    used_at: float


class StreamTable:
    """The states of the open streams. Times are monotonic seconds.

    Args:
        model: Name for messages.
        limits: The most open streams, and how long one may be idle.
    """

    def __init__(self, model: str, limits: StreamLimits) -> None:
        self._model, self._limits = model, limits
        self._open: dict[Key, _Stream] = {}
        self._ended: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._open)

    def keys(self) -> Collection[Key]:
        """Ids of the open streams."""
        return self._open.keys()

    def start(self, key: Key, zero: State, now: float) -> State:
        """Open a stream, or begin an open one again, with the zero state.

        Raises:
            OverloadedError: the limit of open streams is reached.
        """
        if key not in self._open and len(self._open) >= self._limits.streams:
            raise self._too_many(now)
        self._ended.pop(key, None)
        self._open[key] = _Stream(zero, now)
        return zero

    def state(self, key: Key) -> State:
        """The state of an open stream.

        Raises:
            StreamEndedError: it was open, and ended without the client.
            DataError: it was never begun, or the client ended it.
        """
        stream = self._open.get(key)
        if stream is not None:
            return stream.state
        reason = self._ended.get(key)
        if reason is not None:
            raise StreamEndedError(key, self._model, reason)
        raise DataError(
            f"stream {key!r} of model {self._model} is not open: its first request must have {START} true",
            advice=f"Send {START} true with the first request of a stream.",
        )

    def keep(self, key: Key, state: State, now: float) -> None:
        """Replace the state of an open stream after a request."""
        self._open[key] = _Stream(state, now)

    def end(self, key: Key) -> None:
        """Drop a stream by the wish of its client, or because its first request failed."""
        self._open.pop(key, None)

    def end_idle(self, now: float, busy: Collection[Key]) -> float | None:
        """End the idle streams, but not those with a request (`busy`).

        Returns:
            Seconds until the next one can end; None where no stream is open.
        """
        limit = self._limits.idle_seconds
        for key in [key for key, one in self._open.items() if key not in busy and now - one.used_at >= limit]:
            self.note_ended(key, f"it had no request for {limit:g} s")
        waits = [one.used_at + limit - now for key, one in self._open.items() if key not in busy]
        return min(waits, default=limit) if self._open else None

    def note_ended(self, key: Key, reason: str) -> None:
        """Drop a stream, and keep the reason for its next request."""
        self._open.pop(key, None)
        self._ended.pop(key, None)  # the newest is last
        self._ended[key] = reason
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def follow(self, earlier: StreamTable, also: Collection[Key], reason: str) -> None:
        """Take over the ended streams of an earlier table, and its open ones and `also` as ended for `reason`."""
        for key, old in earlier._ended.items():
            self.note_ended(key, old)
        for key in {*earlier._open, *also}:
            self.note_ended(key, reason)

    def _too_many(self, now: float) -> OverloadedError:
        oldest = min(one.used_at for one in self._open.values())
        retry = max(MIN_RETRY_SECONDS, math.ceil(oldest + self._limits.idle_seconds - now))
        return OverloadedError(
            self._model,
            len(self._open),
            retry,
            f"model {self._model} has {len(self._open)} open streams, which is its limit",
            "end streams with sequence_end, or raise max_streams",
        )
