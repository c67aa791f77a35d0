"""Chooses answers by the rules, seals them for the operator and stores them in the spool, beside the requests."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from device_agents.inference.cloud import budget_rules
from device_agents.inference.cloud.budget_rules import Budget, Spent, Verdict
from device_agents.inference.watch.observation import Observation
from device_agents.remote.answer import CommandAnswer
from device_agents.spool.rules import Ask, Rule, reasons_of, row_count, row_of
from device_agents.spool.store import FOLDER, Spool, Spooled
from device_agents.threads import in_thread
from edgekit.errors import DiskError
from edgekit.mqtt.command_arguments import CollectArguments
from edgekit.mqtt.sample_parts import MAX_SAMPLE_BYTES
from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.protocols import Clock, Disk
from edgekit.samples.sample import Sample, encode_sample, to_bytes
from edgekit.tensors import Array, TensorSpec

_log = logging.getLogger(__name__)

STATE_FILE = f"{FOLDER}.json"
MOST_WAITING = 16  # samples that wait for the disk; more are not kept, so that a slow disk takes no memory
LOG_SECONDS = 600.0
NOT_KEPT = "samples-not-kept"  # kind of the event
NUMBERS = "biuf"  # kinds of numpy dtypes
Seal = Callable[[bytes, bytes], bytes]
Tell = Callable[[str, str], None]


class State(msgspec.Struct, frozen=True):
    """The state that survives a restart: the day's spending, and the rule that an operator sent."""

    spent: Spent = Spent()
    ask: Ask | None = None
    format: int = 1


class CollectOptions(NamedTuple):
    """The limits that the owner of the device sets.

    Attributes:
        rule: Which answers are kept without being asked.
        budget: Most samples and bytes in a day.
    """

    rule: Rule
    budget: Budget


class _Chosen(NamedTuple):
    """A row that is kept, with copies of its tensors."""

    seen: Observation
    reason: SampleReason
    at: float
    inputs: dict[str, Array]
    local: dict[str, Array]
    cloud: dict[str, Array]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(budget_rules.size_of(one) for one in (self.inputs, self.local, self.cloud))


class Collector:
    """Collects samples on one device.

    Args:
        device: Its name.
        options: What its owner allows.
        spool: Where samples are stored.
        seal: Seals the bytes of a sample; given also the context, its id.
        disk: The device's folder.
        clock: Wall time.
        spread: Gives random numbers from 0 to 1.
        tell: Told, by kind and message, of what an operator must know; at most once in LOG_SECONDS.

    Attributes:
        counts: Rising counts: ``kept``, and why others were not: ``limit``, ``full``, ``disk``, ``busy``, ``unfit``.
        stored: Set when a sample was stored.
    """

    def __init__(
        self,
        device: str,
        options: CollectOptions,
        spool: Spool,
        seal: Seal,
        disk: Disk,
        clock: Clock,
        spread: Callable[[], float],
        tell: Tell = lambda kind, message: None,
    ) -> None:
        self._device, self._options, self._spool, self._seal = device, options, spool, seal
        self._disk, self._clock, self._spread, self.tell = disk, clock, spread, tell
        self._state = self._read()
        self._stored = self._state
        self._waiting: asyncio.Queue[_Chosen | None] = asyncio.Queue(MOST_WAITING)
        self._told_at = float("-inf")
        self.counts: Counter[str] = Counter()
        self.stored = asyncio.Event()

    def wants(self, model: str) -> bool:
        """See TakesSamples.wants."""
        return any(rule is not None and rule.model in ("", model) for rule in self._rules(self._clock.wall()))

    def take(self, seen: Observation) -> None:
        """See TakesSamples.take."""
        now = self._clock.wall()
        n = row_count(seen)
        if not n or any(value.dtype.kind not in NUMBERS for value in seen.inputs.values()):
            self.counts["unfit"] += 1
            return
        for row, found in enumerate(reasons_of(seen, n)):
            asked, own = [
                rule and rule.choose(seen.model, found, self._spread()) for rule in self._rules(now)
            ]  # anew for each row: the last sample that was asked for ends that rule
            if reason := asked or own:
                self._keep(seen, row, n, reason, now, for_ask=asked is not None)

    def _rules(self, now: float) -> tuple[Rule | None, Rule | None]:
        """The rule that an operator sent, and the device's own; None for one that keeps nothing now."""
        ask, own = self._state.ask, self._options.rule
        return (ask.rule if ask is not None and ask.holds(now) else None), (own if own.active else None)

    def _keep(self, seen: Observation, row: int, n: int, reason: SampleReason, now: float, *, for_ask: bool) -> None:
        if self._waiting.full():
            self.counts["busy"] += 1
            return
        try:
            chosen = _Chosen(
                seen._replace(inputs={}, local={}, cloud=None),
                reason,
                now,
                _copied(seen.input_specs, seen.inputs, row, n),
                _copied(seen.output_specs, seen.local, row, n),
                _of_cloud(seen, row, n),
            )
        except MemoryError:  # the request that is being answered must not fail for a copy
            self.counts["busy"] += 1
            return
        if chosen.size > MAX_SAMPLE_BYTES // 2:
            self.counts["unfit"] += 1
            return
        spent = budget_rules.today(self._state.spent, now, self._clock.monotonic())
        pace = None if for_ask else self._spread()  # spread over the day, unless an operator asked for samples now
        if budget_rules.judge(self._options.budget, spent, chosen.size, pace, now) is not Verdict.ALLOWED:
            self.counts["limit"] += 1
            self._begin(spent)
            return
        ask = self._state.ask
        if for_ask and ask is not None:
            ask = msgspec.structs.replace(ask, left=ask.left - 1)
            if not ask.left:
                ask = None
        self._state = State(budget_rules.add(spent, chosen.size), ask)
        self._waiting.put_nowait(chosen)

    def _begin(self, spent: Spent) -> None:
        """Keep the begin of the day, also over a restart: one that began anew at each look would never end."""
        if spent.begun != self._state.spent.begun and (spent.calls or spent.bytes):
            self._state = msgspec.structs.replace(self._state, spent=spent)
            self._waiting.put_nowait(None)  # there is room, see `_keep`

    async def run(self) -> None:
        """Store what was chosen, until cancelled."""
        try:
            while True:
                await self._store(await self._waiting.get())
        finally:
            while not self._waiting.empty():
                await self._store(self._waiting.get_nowait())

    async def _store(self, chosen: _Chosen | None) -> None:
        """Store a sample; None stores the spending only."""
        try:
            kept = await in_thread(self._write_sample, chosen) if chosen else await in_thread(self._write_spent)
        except DiskError as error:
            self.counts["disk"] += 1
            self._warn(NOT_KEPT, f"a sample could not be stored; models answer as before: {error}")
            return
        if kept:
            self.stored.set()

    async def answer(self, arguments: CollectArguments) -> CommandAnswer:
        """The command ``collect``: take a rule, or end the one before, and say how many samples there are."""
        now, ask = self._clock.wall(), None
        if arguments.samples:
            rule = Rule(arguments.reasons, arguments.share, arguments.model)
            if not rule.active:
                return CommandAnswer(False, "the rule keeps nothing: give reasons or a share")
            ask = Ask(rule, arguments.samples, now + arguments.seconds)
        before, self._state = self._state.ask, State(self._state.spent, ask)
        try:
            await in_thread(self._write)
        except DiskError:
            self._state = State(self._state.spent, before)
            raise
        detail = {"waiting": len(self._spool), "waiting_bytes": self._spool.used_bytes, **self.counts}
        does = f"keeps up to {arguments.samples} samples" if ask else "keeps samples by its own settings only"
        return CommandAnswer(True, f"{does}; {len(self._spool)} wait to be sent", detail)

    def _write_spent(self) -> bool:
        if self._stored.ask != self._state.ask or not budget_rules.covers(
            self._options.budget, self._stored.spent, self._state.spent
        ):
            self._write()
        return False

    def _write_sample(self, chosen: _Chosen) -> bool:
        self._write_spent()
        seen = chosen.seen
        sample = self._spool.next_id(chosen.reason, secrets.token_hex(8))
        body = Sample(
            id=sample,
            device=self._device,
            model=seen.model,
            version=seen.version,
            digest=seen.digest,
            at=chosen.at,
            reason=chosen.reason,
            score=seen.score,
            inputs=to_bytes(chosen.inputs),
            local=to_bytes(chosen.local),
            cloud=to_bytes(chosen.cloud),
            cloud_model=seen.cloud_model if chosen.cloud else "",
        )
        sealed = self._seal(encode_sample(body), sample.encode())
        kept = self._spool.put(sample, Spooled(seen.model, seen.digest, chosen.at, sealed))
        self.counts["kept" if kept else "full"] += 1  # here, because the caller may be cancelled meanwhile
        return kept

    def _read(self) -> State:
        try:
            if self._disk.exists(STATE_FILE):
                return msgspec.json.decode(self._disk.read(STATE_FILE), type=State)
        except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("%s cannot be read, limits of samples begin anew: %s", STATE_FILE, error)
        return State()

    def _write(self) -> None:
        """Store the state; the spending with a reserve, so that not every sample is a write."""
        state = self._state
        stored = msgspec.structs.replace(state, spent=budget_rules.reserved(self._options.budget, state.spent))
        self._disk.write(STATE_FILE, msgspec.json.encode(stored))
        self._stored = stored

    def _warn(self, kind: str, message: str) -> None:
        now = self._clock.monotonic()
        if now - self._told_at < LOG_SECONDS:
            return
        self._told_at = now
        _log.warning("%s", message)
        self.tell(kind, message)


def _copied(specs: Iterable[TensorSpec], values: Mapping[str, Array], row: int, n: int) -> dict[str, Array]:
    """One of `n` rows of the tensors of numbers; text among the outputs is left out."""
    return {name: one.copy() for name, one in row_of(specs, values, row, n).items() if one.dtype.kind in NUMBERS}


def _of_cloud(seen: Observation, row: int, n: int) -> dict[str, Array]:
    if seen.cloud is None or (seen.cloud_rows is not None and not seen.cloud_rows[row]):
        return {}
    return _copied(seen.output_specs, seen.cloud, row, n)
