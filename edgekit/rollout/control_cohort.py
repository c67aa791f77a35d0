"""Compares devices with the new model with the control cohort: devices that still run the old version. Pure rules.

A device of either cohort is compared with its own answers before the rollout, so that devices may differ from each
other. From the change of a device with the new model, the change of the control cohort is subtracted that was reported
at the same time: what changes for the whole fleet cancels out. This is the difference in differences of econometrics
(Card and Krueger, "Minimum wages and employment", American Economic Review 84(4), 1994), on single observations, so
that the sequential test of `gate_evidence` weighs it. It assumes that, with equal models, both cohorts change alike.

Each observation is in one comparison only. Which ones meet is drawn from a hash, and depends on counts and never on
what the observations say. A report's observations meet those of the last reports of the other cohort; what is left of
them at the next report is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from edgekit.mqtt.messages import Behaviour, Running
from edgekit.rollout.gate_evidence import STEPS
from edgekit.rollout.gate_observed import Beside, Observed, added
from edgekit.rollout.gate_pairs import MAX_DRAWN, MAX_PAIRS, Pairs, draw_pairs, drawn, draws_of
from edgekit.rollout.gates import AGREEMENT, Gate
from edgekit.rollout.values import UNASSIGNED, DeviceProgress, DeviceState

MIN_CONTROLS = 5
SAME_SECONDS = 3600.0  # what a report adds after a longer time may be from other hours
PER_PAIR = (4, 2, 1)  # so many pairs of the control cohort stand beside one, the most that there are
EXCESS, SHARE = 2, 0.15  # a control changes plainly otherwise than the others: more pairs than this, and for each pair


def heard(progress: DeviceProgress, running: Running | None, now: float) -> DeviceProgress:
    """The device's progress with the counts that it reported, of either cohort.

    Args:
        progress: Its progress.
        running: Its last report about the model; None before the first.
        now: Wall clock seconds.
    """
    if running is None or not progress.digest or not running.behaviour:
        return progress
    before = progress.observed or Observed()
    after = before.after(running, progress.digest)
    if after == before:
        return progress
    if before.history is None:
        after = msgspec.structs.replace(after, history=after.baseline.total, fresh_at=now)
        return msgspec.structs.replace(progress, observed=after)
    is_new = after.candidate.total != before.candidate.total
    counts = (before.candidate, after.candidate) if is_new else (before.baseline, after.baseline)
    recent = 0 <= now - before.fresh_at <= SAME_SECONDS
    after = msgspec.structs.replace(
        after,
        fresh=added(counts[0].total, counts[1].total) if recent else Behaviour(),
        fresh_of=progress.digest if is_new else after.previous,
        fresh_at=now,
        beside={text: msgspec.structs.replace(one, taken_good=0, taken=0) for text, one in before.beside.items()},
    )
    return msgspec.structs.replace(progress, observed=after)


def controls(devices: Mapping[str, DeviceProgress]) -> int:
    """Number of devices of the control cohort: no wave has reached them, and they have reported counts."""
    return sum(one.state is DeviceState.PENDING and one.observed is not None for one in devices.values())


def compare(
    devices: Mapping[str, DeviceProgress], gates: Sequence[Gate], seed: str, now: float, *, without: bool
) -> dict[str, DeviceProgress]:
    """The devices with the comparisons that their last reports allow.

    Args:
        devices: The devices of the rollout.
        gates: Its gates.
        seed: Names the rollout; the draws depend on it.
        now: Wall clock seconds.
        without: There is no control cohort: each device is compared with its own answers before the rollout alone.
    """
    devices = dict(devices)
    for gate in gates:
        if gate.metric == AGREEMENT:
            continue
        new = [side for name, one in sorted(devices.items()) if (side := _new_side(name, one, gate, now)) is not None]
        if not new:
            continue
        if without:
            for side in new:
                devices[side.name] = _alone(devices[side.name], side, gate, seed)
            continue
        control = [side for name, one in sorted(devices.items()) if (side := _control_side(name, one, gate, now))]
        _compare_one(devices, new, _without_outliers(control), gate, seed)
    return devices


class _Side(NamedTuple):
    """A device's observations that are in no pair, and the number of pairs that they make at most."""

    name: str
    before: tuple[int, int]
    after: tuple[int, int]
    room: int
    given: Pairs


def _new_side(name: str, progress: DeviceProgress, gate: Gate, now: float) -> _Side | None:
    if progress.state in UNASSIGNED:
        return None
    side = _side(name, progress.observed, gate, now, fresh_of=progress.digest, is_new=True)
    return side if side is not None and side.room > 0 else None


def _control_side(name: str, progress: DeviceProgress, gate: Gate, now: float) -> _Side | None:
    if progress.state is not DeviceState.PENDING or progress.observed is None:
        return None
    return _side(name, progress.observed, gate, now, fresh_of=progress.observed.previous, is_new=False)


def _side(name: str, seen: Observed | None, gate: Gate, now: float, *, fresh_of: str, is_new: bool) -> _Side | None:
    if seen is None or seen.history is None:
        return None
    one = seen.beside.get(gate.text, Beside())
    alone = seen.pairs.get(gate.text, Pairs())
    good, total = gate.good_of(seen.history)
    used = (one.control, one.own, alone)
    before = (good - sum(pairs.baseline_good for pairs in used), total - sum(pairs.count for pairs in used))
    fresh_good, fresh = gate.good_of(seen.fresh) if seen.fresh_of == fresh_of else (0, 0)
    after = (fresh_good - one.taken_good, fresh - one.taken)
    if now - seen.fresh_at > SAME_SECONDS:
        after = (0, 0)
    given = one.own.plus(alone) if is_new else one.control
    # A device of the control cohort keeps half of its earlier answers for its own wave.
    most = MAX_PAIRS if is_new else total - total // 2
    room = max(0, min(before[1], after[1], most - given.count, MAX_DRAWN))
    return _Side(name, before, after, room, given)


def _without_outliers(control: list[_Side]) -> list[_Side]:
    """The control cohort without devices whose earlier pairs changed plainly otherwise than those of the others.

    None gives more pairs than their median could, in all reports together. Both depend on earlier pairs and
    on counts only, so that the draws stay fair.
    """
    total = sum(side.given.count for side in control)
    change = sum(side.given.worse - side.given.better for side in control) / total if total else 0.0
    kept = []
    for side in control:
        excess = abs(side.given.worse - side.given.better - change * side.given.count)
        if excess <= EXCESS + SHARE * side.given.count:
            kept.append(side)
    possible = [side.given.count + side.room for side in kept if side.given.count + side.room]
    if len(possible) < MIN_CONTROLS:
        return []
    most = statistics.median_low(possible)
    return [side._replace(room=max(0, min(side.room, most - side.given.count))) for side in kept]


def _compare_one(
    devices: dict[str, DeviceProgress], new: list[_Side], control: list[_Side], gate: Gate, seed: str
) -> None:
    """Compare the observations of one gate, and put the devices that changed into `devices`."""
    wanted, there = sum(side.room for side in new), sum(side.room for side in control)
    beside = next((count for count in PER_PAIR if count * wanted <= there), 1)
    wanted = min(wanted, there)
    if not wanted:
        return
    changes = [0, 0, 0]  # pairs of the control cohort that got worse, are equal, got better
    for side, room in zip(control, _spread([side.room for side in control], wanted * beside), strict=True):
        pairs = _drawn_pairs(side, room, f"{seed}/{side.name}/{gate.text}/control")
        devices[side.name] = _with(devices[side.name], gate, pairs, None)
        changes = [
            before + more for before, more in zip(changes, (pairs.worse, pairs.equal, pairs.better), strict=True)
        ]
    for side, room in zip(new, _spread([side.room for side in new], wanted), strict=True):
        name = f"{seed}/{side.name}/{gate.text}/new"
        pairs = _drawn_pairs(side, room, name)
        draws = draws_of(f"{name}/{side.given.count}/beside", 6 * beside * room)
        steps = _steps(pairs, changes, beside, draws)
        devices[side.name] = _with(devices[side.name], gate, pairs, steps)


def _steps(pairs: Pairs, changes: list[int], beside: int, draws: Iterator[float]) -> list[int]:
    """Number of comparisons by the difference; takes what it draws from `changes`."""
    steps = [0] * STEPS
    left = [pairs.worse, pairs.equal, pairs.better]
    for _ in range(pairs.count):
        own = _take(left, 1, draws)
        others = _take(changes, beside, draws)
        steps[STEPS // 2 + 4 * own - 4 * others // beside] += 1
    return steps


def _take(kinds: list[int], count: int, draws: Iterator[float]) -> int:
    """The sum of differences (1 for worse, 0, -1 for better) that are drawn without putting back."""
    worse = drawn(kinds[0], sum(kinds), count, draws)
    better = drawn(kinds[2], kinds[1] + kinds[2], count - worse, draws)
    kinds[0] -= worse
    kinds[1] -= count - worse - better
    kinds[2] -= better
    return worse - better


def _alone(progress: DeviceProgress, side: _Side, gate: Gate, seed: str) -> DeviceProgress:
    """The device, whose fresh observations make pairs with its own earlier ones."""
    pairs = _drawn_pairs(side, side.room, f"{seed}/{side.name}/{gate.text}/alone")
    seen = progress.observed or Observed()
    one = seen.beside.get(gate.text, Beside())
    taken = msgspec.structs.replace(
        one, taken_good=one.taken_good + pairs.candidate_good, taken=one.taken + pairs.count
    )
    more = {**seen.pairs, gate.text: seen.pairs.get(gate.text, Pairs()).plus(pairs)}
    seen = msgspec.structs.replace(seen, pairs=more, beside={**seen.beside, gate.text: taken})
    return msgspec.structs.replace(progress, observed=seen)


def _drawn_pairs(side: _Side, count: int, seed: str) -> Pairs:
    return draw_pairs(count, side.before, side.after, draws_of(f"{seed}/{side.given.count}", 3 * count))


def _with(progress: DeviceProgress, gate: Gate, pairs: Pairs, steps: list[int] | None) -> DeviceProgress:
    """The device with more pairs: of the new model, with `steps`; of the control cohort, without."""
    if not pairs.count or progress.observed is None:
        return progress
    one = progress.observed.beside.get(gate.text, Beside())
    if steps is None:
        one = msgspec.structs.replace(one, control=one.control.plus(pairs))
    else:
        before = one.steps or (0,) * STEPS
        one = msgspec.structs.replace(
            one, own=one.own.plus(pairs), steps=tuple(map(sum, zip(before, steps, strict=True)))
        )
    one = msgspec.structs.replace(one, taken_good=one.taken_good + pairs.candidate_good, taken=one.taken + pairs.count)
    seen = msgspec.structs.replace(progress.observed, beside={**progress.observed.beside, gate.text: one})
    return msgspec.structs.replace(progress, observed=seen)


def _spread(rooms: list[int], total: int) -> list[int]:
    """How much of `total` each one takes, as evenly as their rooms allow; all of it, where there is room enough."""
    parts = [0] * len(rooms)
    for place, index in enumerate(sorted(range(len(rooms)), key=rooms.__getitem__)):
        parts[index] = min(rooms[index], -(-total // (len(rooms) - place)))
        total -= parts[index]
    return parts
