"""Which candidate to take: the best for the aim that is shown to stay within the budget, and a reason for every other.

Many candidates may be tried without loosening the claim, because the order of trial is fixed before the proof samples
are looked at: from the one nearest to float towards the most aggressive, each at the full confidence, and the first
that fails ends it. The chance that any candidate beyond the budget passes is then at most 1 - confidence, however many
there are: for one to pass wrongly, the first such in the order must (fixed-sequence testing; Maurer, Hothorn and
Lehmacher 1995).
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
NEARNESS = (UNPROVEN, UNTESTED, DOMINATED, REFUSED, FAILED)  # what came nearest, where nothing fits


class Budget(msgspec.Struct, frozen=True):
    """What a bundle may lose and need.

    Attributes:
        max_drop: Largest allowed drop in the metric's unit.
        confidence: Of the bound on the drop.
        max_bytes: Largest artifact; None for any.
        max_cost: Highest cost in the cost's unit; None for any.
    """

    max_drop: float = 0.01
    confidence: float = 0.95
    max_bytes: int | None = None
    max_cost: float | None = None


class Measured(msgspec.Struct, frozen=True):
    """What is known of one candidate.

    Attributes:
        recipe: How it was made.
        bytes: Size of the artifact.
        cost: Of one row on the target.
        same: A float artifact within parity tolerance that changed no decision.
        choice_drop: Drop on the choice split, in the metric's unit; None without data.
        drop: Drop on the proof split with its bounds; None without data. It has no part in the order of trial.
        fault: Why it could not be made; empty where it was.
        distance: From the float model's answers on the choice split (see `divergence`); no unit.
        estimate: Drop on choice and proof split together, a point without bounds; None without data.
    """

    recipe: Recipe
    bytes: int
    cost: Cost
    same: bool = False
    choice_drop: float | None = None
    drop: Drop | None = None
    fault: str = ""
    distance: float = 0.0
    estimate: float | None = None


class Choice(msgspec.Struct, frozen=True):
    """The outcome: the chosen id, whether its drop is shown to be within budget, and (verdict, reason) by id."""

    chosen: str
    proven: bool
    verdicts: dict[str, tuple[str, str]]


def choose(found: list[Measured], budget: Budget, *, aim: str, accept_unproven: bool) -> Choice:
    """Take the cheapest (or smallest) candidate that is shown to be within the budget.

    Float candidates that answer the same need no statistics. The others go to the proof split in the order of
    `sequence`. With `accept_unproven` the best point estimate may be taken instead, and is called proven only if it is.

    Raises:
        RefusedError: none fits; says what came nearest.
    """
    verdicts: dict[str, tuple[str, str]] = {}
    for measured in found:
        fault = (
            measured.fault or _limits(measured, budget) or ("" if measured.same else _choice_fault(measured, budget))
        )
        if fault:
            verdicts[measured.recipe.id] = (FAILED if measured.fault else REFUSED, fault)
    fit = sorted((m for m in found if m.recipe.id not in verdicts), key=lambda m: _rank(m, aim))
    verdicts.update(_dominated(fit))
    fit = [m for m in fit if m.recipe.id not in verdicts]
    order, passed_over = sequence(fit, aim)
    verdicts.update(
        {m.recipe.id: (FITS, "same answers as the float model, within parity tolerance") for m in fit if m.same}
    )
    verdicts.update({name: (UNTESTED, reason) for name, reason in passed_over.items()})
    verdicts.update(_tried(order, budget))
    proven = {m.recipe.id for m in fit if verdicts[m.recipe.id][0] == FITS}
    if accept_unproven:
        verdicts.update(_accepted(fit, verdicts, budget))
    fitting = [m for m in fit if verdicts[m.recipe.id][0] == FITS]
    if not fitting:
        raise _nothing_fits(found, verdicts)
    taken = fitting[0]
    name = taken.recipe.id
    verdicts[name] = (CHOSEN, f"the {'cheapest' if aim == 'cost' else 'smallest'} that fits; {verdicts[name][1]}")
    return Choice(name, name in proven and taken.drop is not None, {m.recipe.id: verdicts[m.recipe.id] for m in found})


def sequence(fit: list[Measured], aim: str) -> tuple[list[Measured], dict[str, str]]:
    """In which order candidates go to the proof split, and why others do not go; the proof split has no part in it.

    Each next one is better for the aim and further from the float model. What is both worse for the aim and further off
    than another could only get in its way.
    """
    order: list[Measured] = []
    passed_over: dict[str, str] = {}
    for measured in sorted(fit, key=lambda m: _rank(m, aim)):  # the best for the aim first
        # What is better for the aim and no further off; of those that answer the same, any.
        better = next((m for m in fit if _rank(m, aim) < _rank(measured, aim) and _no_further(m, measured)), None)
        if measured.same:
            continue
        if better is None:
            order.append(measured)
        else:
            word = "costs less" if aim == "cost" else "is smaller"
            near = "answers as the float model does" if better.same else "is nearer to the float model"
            passed_over[measured.recipe.id] = f"not taken to the proof: {better.recipe.id} {word} and {near}"
    return order[::-1], passed_over


def _no_further(one: Measured, than: Measured) -> bool:
    return one.same or (not than.same and one.distance <= than.distance)


def _tried(order: list[Measured], budget: Budget) -> dict[str, tuple[str, str]]:
    """Verdicts on the proof split, step by step up to the first failure."""
    verdicts: dict[str, tuple[str, str]] = {}
    failed = ""
    for step, measured in enumerate(order, 1):
        drop, name = measured.drop, measured.recipe.id
        assert drop is not None  # without data a candidate is refused before
        where = f" (proof step {step} of {len(order)})" if len(order) > 1 else ""
        if failed:
            verdicts[name] = (
                UNTESTED,
                f"not taken to the proof, which ended at {failed}: nearer to float, yet not shown",
            )
        elif drop.upper <= budget.max_drop:
            kind = ", asymptotic bound" if drop.asymptotic else ""
            verdicts[name] = (
                FITS,
                f"drop at most {drop.upper:.4g} at {budget.confidence:.0%} on {drop.n} samples{kind}{where}",
            )
        else:
            verdicts[name] = (UNPROVEN, _not_shown(drop, budget) + where)
            failed = name
    return verdicts


def _accepted(fit: list[Measured], verdicts: dict[str, tuple[str, str]], budget: Budget) -> dict[str, tuple[str, str]]:
    """What fits by its point estimate alone."""
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
            accepted[measured.recipe.id] = (REFUSED, f"drops by {estimate:.4g}, allowed are {budget.max_drop:.4g}")
    return accepted


def _dominated(fit: list[Measured]) -> dict[str, tuple[str, str]]:
    """What costs no less, is no smaller and no nearer to float than another is never taken."""
    verdicts: dict[str, tuple[str, str]] = {}
    for place, measured in enumerate(fit):
        for other_place, other in enumerate(fit):
            if other is measured or other.recipe.id in verdicts or measured.same > other.same:
                continue
            mine, theirs = _losses(measured), _losses(other)
            if all(t <= m for t, m in zip(theirs, mine, strict=True)) and (theirs != mine or other_place < place):
                reason = f"{other.recipe.id} costs no more, is no larger and no further from the float model"
                verdicts[measured.recipe.id] = (DOMINATED, reason)
                break
    return verdicts


def _losses(measured: Measured) -> tuple[float, ...]:
    return (measured.cost.value, measured.bytes, measured.distance, measured.choice_drop or 0.0)


def _choice_fault(measured: Measured, budget: Budget) -> str:
    if measured.drop is None or measured.choice_drop is None:
        return "its answers differ and there is no data to judge them by"
    if measured.choice_drop > budget.max_drop:
        return f"drops by {measured.choice_drop:.4g} on the choice split, allowed are {budget.max_drop:.4g}"
    return ""


def _not_shown(drop: Drop, budget: Budget) -> str:
    text = (
        f"drop of {drop.value:.4g} on {drop.n} samples may be as much as {drop.upper:.4g} at {budget.confidence:.0%}, "
        f"allowed are {budget.max_drop:.4g}"
    )
    needed = samples_needed(budget.max_drop, budget.confidence)
    if drop.method == CLOPPER_PEARSON and needed > drop.n:
        return f"{text}; at least {needed} proof samples could prove it ({-(-needed * 5 // 3)} in --data)"
    return f"{text}; more samples, or --accept-unproven"


def _rank(measured: Measured, aim: str) -> tuple[float, float]:
    pair = (measured.cost.value, float(measured.bytes))
    return pair if aim == "cost" else (pair[1], pair[0])


def _limits(measured: Measured, budget: Budget) -> str:
    faults = []
    if budget.max_bytes is not None and measured.bytes > budget.max_bytes:
        faults.append(f"{measured.bytes} bytes, allowed are {budget.max_bytes}")
    if budget.max_cost is not None and measured.cost.value > budget.max_cost:
        faults.append(f"cost {measured.cost.value:.4g} {measured.cost.unit}, allowed is {budget.max_cost:.4g}")
    return "; ".join(faults)


def _nothing_fits(found: list[Measured], verdicts: dict[str, tuple[str, str]]) -> RefusedError:
    made = [measured for measured in found if not measured.fault] or found
    nearest = min(made, key=lambda m: (NEARNESS.index(verdicts[m.recipe.id][0]), _excess(m)))
    others = "; ".join(f"{name}: {reason}" for name, (_, reason) in verdicts.items() if name != nearest.recipe.id)
    return RefusedError(
        f"no candidate meets the budget; nearest is {nearest.recipe.id}: {verdicts[nearest.recipe.id][1]}"
        + (f" ({others})" if others else ""),
        advice="Allow more with --max-drop, --max-bytes or --max-cost, or give more samples with --data.",
    )


def _excess(measured: Measured) -> float:
    return measured.drop.value if measured.drop is not None else float(measured.bytes)
