"""Chooses the best candidate that is proven to be within the budget, and gives a verdict for every other candidate.

Many candidates can be tested without weakening the proof, because the order of the tests is fixed before the proof
samples are used: from the candidate nearest to float to the most aggressive one, each at the full confidence. The first
failure ends the tests. So the probability that any candidate beyond the budget passes is at most 1 - confidence, for
any number of candidates: the first such candidate in the order would have to pass (fixed-sequence testing; Maurer,
Hothorn and Lehmacher 1995).
"""

from __future__ import annotations

import msgspec

from converters.quality.drop import CLOPPER_PEARSON, Drop, samples_needed
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import Recipe
from edgekit.errors import RefusedError

CHOSEN, FITS, UNPROVEN, UNTESTED = "chosen", "fits", "unproven", "untested"
DOMINATED, REFUSED, FAILED = "dominated", "refused", "failed"
AIMS = ("cost", "size")
NEARNESS = (UNPROVEN, UNTESTED, DOMINATED, REFUSED, FAILED)  # order of "nearest" where no candidate fits


class Budget(msgspec.Struct, frozen=True):
    """Limits of a bundle.

    Attributes:
        max_drop: Largest allowed drop in the metric's unit.
        confidence: Confidence of the bound on the drop.
        max_bytes: Size limit of the artifact; None for no limit.
        max_cost: Cost limit in the cost's unit; None for no limit.
    """

    max_drop: float = 0.01
    confidence: float = 0.95
    max_bytes: int | None = None
    max_cost: float | None = None


class Measured(msgspec.Struct, frozen=True):
    """Measurements of one candidate.

    Attributes:
        recipe: Recipe of the candidate.
        bytes: Size of the artifact.
        cost: Cost of one row on the target.
        same: True for a float artifact within parity tolerance that changes no decision.
        choice_drop: Drop on the choice split, in the metric's unit; None without data.
        drop: Drop on the proof split with its bounds; None without data. The order of the tests does not depend on it.
        fault: Why the candidate could not be made; empty where it was made.
        divergence: Divergence from the float model's answers on the choice split (see `divergence`); no unit.
        estimate: Point estimate of the drop on both splits together; None without data.
    """

    recipe: Recipe
    bytes: int
    cost: Cost
    same: bool = False
    choice_drop: float | None = None
    drop: Drop | None = None
    fault: str = ""
    divergence: float = 0.0
    estimate: float | None = None


class Choice(msgspec.Struct, frozen=True):
    """The result: the chosen id, whether its drop is proven to be within the budget, and (verdict, reason) by id."""

    chosen: str
    proven: bool
    verdicts: dict[str, tuple[str, str]]


def choose(candidates: list[Measured], budget: Budget, *, aim: str, accept_unproven: bool) -> Choice:
    """Choose the cheapest (or smallest) candidate that is proven to be within the budget.

    Float candidates with the same answers need no statistics. The others are tested on the proof split in the order of
    `sequence`. With `accept_unproven`, a point estimate is accepted too; the result is then marked as not proven.

    Raises:
        RefusedError: no candidate fits; the message names the nearest one.
    """
    verdicts: dict[str, tuple[str, str]] = {}
    for measured in candidates:
        fault = (
            measured.fault or _limits(measured, budget) or ("" if measured.same else _choice_fault(measured, budget))
        )
        if fault:
            verdicts[measured.recipe.id] = (FAILED if measured.fault else REFUSED, fault)
    fit = sorted((m for m in candidates if m.recipe.id not in verdicts), key=lambda m: _rank(m, aim))
    verdicts.update(_dominated(fit))
    fit = [m for m in fit if m.recipe.id not in verdicts]
    order, skipped = sequence(fit, aim)
    verdicts.update(
        {m.recipe.id: (FITS, "same answers as the float model, within parity tolerance") for m in fit if m.same}
    )
    verdicts.update({name: (UNTESTED, reason) for name, reason in skipped.items()})
    verdicts.update(_test_in_order(order, budget))
    proven = {m.recipe.id for m in fit if verdicts[m.recipe.id][0] == FITS}
    if accept_unproven:
        verdicts.update(_accepted(fit, verdicts, budget))
    fitting = [m for m in fit if verdicts[m.recipe.id][0] == FITS]
    if not fitting:
        raise _nothing_fits(candidates, verdicts)
    best = fitting[0]
    name = best.recipe.id
    verdicts[name] = (CHOSEN, f"the {'cheapest' if aim == 'cost' else 'smallest'} that fits; {verdicts[name][1]}")
    return Choice(
        name, name in proven and best.drop is not None, {m.recipe.id: verdicts[m.recipe.id] for m in candidates}
    )


def sequence(fit: list[Measured], aim: str) -> tuple[list[Measured], dict[str, str]]:
    """The order in which candidates are tested on the proof split, and the reasons why others are not tested.

    The order does not depend on the proof split. Each next candidate is better for the aim and further from the float
    model. A candidate that is worse for the aim and further from the float model than another one is not tested,
    because its failure would end the tests early.
    """
    order: list[Measured] = []
    skipped: dict[str, str] = {}
    for measured in sorted(fit, key=lambda m: _rank(m, aim)):  # the best for the aim first
        # A candidate that is better for the aim and no further from float; candidates with the same answers are equal.
        better = next((m for m in fit if _rank(m, aim) < _rank(measured, aim) and _no_further(m, measured)), None)
        if measured.same:
            continue
        if better is None:
            order.append(measured)
        else:
            word = "costs less" if aim == "cost" else "is smaller"
            near = "answers as the float model does" if better.same else "is nearer to the float model"
            skipped[measured.recipe.id] = f"not tested: {better.recipe.id} {word} and {near}"
    return order[::-1], skipped


def _no_further(one: Measured, than: Measured) -> bool:
    return one.same or (not than.same and one.divergence <= than.divergence)


def _test_in_order(order: list[Measured], budget: Budget) -> dict[str, tuple[str, str]]:
    """Verdicts of the tests on the proof split, up to the first failure."""
    verdicts: dict[str, tuple[str, str]] = {}
    failed = ""
    for step, measured in enumerate(order, 1):
        drop, name = measured.drop, measured.recipe.id
        assert drop is not None  # a candidate without data was refused before
        where = f" (proof step {step} of {len(order)})" if len(order) > 1 else ""
        if failed:
            verdicts[name] = (
                UNTESTED,
                f"not tested: the tests ended at {failed}, which is nearer to float and was not proven",
            )
        elif drop.upper <= budget.max_drop:
            kind = ", asymptotic bound" if drop.asymptotic else ""
            verdicts[name] = (
                FITS,
                f"drop at most {drop.upper:.4g} at {budget.confidence:.0%} on {drop.n} samples{kind}{where}",
            )
        else:
            verdicts[name] = (UNPROVEN, _unproven_reason(drop, budget) + where)
            failed = name
    return verdicts


def _accepted(fit: list[Measured], verdicts: dict[str, tuple[str, str]], budget: Budget) -> dict[str, tuple[str, str]]:
    """Verdicts of candidates that are judged by their point estimate."""
    accepted = {}
    for measured in fit:
        estimate = measured.estimate
        if estimate is None and measured.drop is not None:
            estimate = measured.drop.value
        if verdicts[measured.recipe.id][0] == FITS or estimate is None:
            continue
        if estimate <= budget.max_drop:
            accepted[measured.recipe.id] = (FITS, f"point estimate {estimate:.4g} accepted without proof")
        else:
            accepted[measured.recipe.id] = (REFUSED, f"drop of {estimate:.4g}, the limit is {budget.max_drop:.4g}")
    return accepted


def _dominated(fit: list[Measured]) -> dict[str, tuple[str, str]]:
    """Verdicts of candidates that are not better than another one in cost, size, or distance from float."""
    verdicts: dict[str, tuple[str, str]] = {}
    for index, measured in enumerate(fit):
        for other_index, other in enumerate(fit):
            if other is measured or other.recipe.id in verdicts or measured.same > other.same:
                continue
            mine, theirs = _losses(measured), _losses(other)
            if all(t <= m for t, m in zip(theirs, mine, strict=True)) and (theirs != mine or other_index < index):
                reason = f"{other.recipe.id} costs no more, is no larger and no further from the float model"
                verdicts[measured.recipe.id] = (DOMINATED, reason)
                break
    return verdicts


def _losses(measured: Measured) -> tuple[float, ...]:
    return (measured.cost.value, measured.bytes, measured.divergence, measured.choice_drop or 0.0)


def _choice_fault(measured: Measured, budget: Budget) -> str:
    if measured.drop is None or measured.choice_drop is None:
        return "its answers differ, and there is no data to judge them"
    if measured.choice_drop > budget.max_drop:
        return f"drop of {measured.choice_drop:.4g} on the choice split, the limit is {budget.max_drop:.4g}"
    return ""


def _unproven_reason(drop: Drop, budget: Budget) -> str:
    text = (
        f"drop of {drop.value:.4g} on {drop.n} samples may be as much as {drop.upper:.4g} at {budget.confidence:.0%}, "
        f"the limit is {budget.max_drop:.4g}"
    )
    needed = samples_needed(budget.max_drop, budget.confidence)
    if drop.method == CLOPPER_PEARSON and needed > drop.n:
        return f"{text}; at least {needed} proof samples ({-(-needed * 5 // 3)} in --data) could prove it"
    return f"{text}; give more samples, or --accept-unproven"


def _rank(measured: Measured, aim: str) -> tuple[float, float]:
    pair = (measured.cost.value, float(measured.bytes))
    return pair if aim == "cost" else (pair[1], pair[0])


def _limits(measured: Measured, budget: Budget) -> str:
    faults = []
    if budget.max_bytes is not None and measured.bytes > budget.max_bytes:
        faults.append(f"{measured.bytes} bytes, the limit is {budget.max_bytes}")
    if budget.max_cost is not None and measured.cost.value > budget.max_cost:
        faults.append(f"cost {measured.cost.value:.4g} {measured.cost.unit}, the limit is {budget.max_cost:.4g}")
    return "; ".join(faults)


def _nothing_fits(candidates: list[Measured], verdicts: dict[str, tuple[str, str]]) -> RefusedError:
    made = [measured for measured in candidates if not measured.fault] or candidates
    nearest = min(made, key=lambda m: (NEARNESS.index(verdicts[m.recipe.id][0]), _excess(m)))
    others = "; ".join(f"{name}: {reason}" for name, (_, reason) in verdicts.items() if name != nearest.recipe.id)
    return RefusedError(
        f"no candidate meets the budget; nearest is {nearest.recipe.id}: {verdicts[nearest.recipe.id][1]}"
        + (f" ({others})" if others else ""),
        advice="Raise --max-drop, --max-bytes or --max-cost, or give more samples with --data.",
    )


def _excess(measured: Measured) -> float:
    return measured.drop.value if measured.drop is not None else float(measured.bytes)
