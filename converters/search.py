"""Which candidates to make, and which of them to take within the budget."""

from __future__ import annotations

import msgspec

from converters.quality import Drop, samples_needed
from edgekit.errors import RefusedError
from edgekit.manifest import Cost
from edgekit.recipe import Recipe
from edgekit.targets import TargetProfile

CHOSEN, FITS, UNPROVEN, REFUSED, FAILED = "chosen", "fits", "unproven", "refused", "failed"
AIMS = ("cost", "size")


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
        drop: Drop on the proof split with its bounds; None without data.
        fault: Why it could not be made; empty where it was.
    """

    recipe: Recipe
    bytes: int
    cost: Cost
    same: bool = False
    choice_drop: float | None = None
    drop: Drop | None = None
    fault: str = ""


class Choice(msgspec.Struct, frozen=True):
    """The outcome: the chosen id, whether its drop is shown to be within budget, and (verdict, reason) by id."""

    chosen: str
    proven: bool
    verdicts: dict[str, tuple[str, str]]


def candidates(profile: TargetProfile, precisions: tuple[str, ...], *, with_data: bool, runtime: str) -> list[Recipe]:
    """The recipes worth a try on a target; int8 needs data to calibrate."""
    symmetric = profile.int8_symmetric and runtime == "onnxruntime"
    return [
        Recipe(precision=precision, symmetric=symmetric and precision == "int8")
        for precision in precisions
        if with_data or precision != "int8"
    ]


def choose(found: list[Measured], budget: Budget, *, aim: str, accept_unproven: bool) -> Choice:
    """Take the cheapest (or smallest) candidate within the budget.

    The choice split names one candidate whose drop is then judged on the proof split. As only one is ever judged there,
    its confidence needs no correction for many tries. Float candidates that answer the same need no statistics.

    Raises:
        RefusedError: none fits; says what came nearest.
    """
    verdicts: dict[str, tuple[str, str]] = {}
    ranked = sorted(found, key=lambda m: _rank(m, aim))
    for measured in ranked:
        fault = measured.fault or _limits(measured, budget)
        if fault:
            verdicts[measured.recipe.id] = (FAILED if measured.fault else REFUSED, fault)
    judged = [measured for measured in ranked if measured.recipe.id not in verdicts]
    tried = False
    for measured in judged:
        if measured.same:
            verdicts[measured.recipe.id] = (FITS, "same answers as the float model, within parity tolerance")
        else:
            verdicts[measured.recipe.id], tried = _by_statistics(measured, budget, accept_unproven, tried)
    fitting = [measured for measured in judged if verdicts[measured.recipe.id][0] == FITS]
    if not fitting:
        raise _nothing_fits(ranked, verdicts)
    taken = fitting[0]
    verdicts[taken.recipe.id] = (CHOSEN, f"the {_aim_word(aim)} that fits; {verdicts[taken.recipe.id][1]}")
    proven = taken.drop is not None and (taken.same or taken.drop.upper <= budget.max_drop)
    return Choice(taken.recipe.id, proven, verdicts)


def _by_statistics(
    measured: Measured, budget: Budget, accept_unproven: bool, tried: bool
) -> tuple[tuple[str, str], bool]:
    """The verdict on a candidate that may answer otherwise, and whether the proof split has been used up."""
    drop, choice_drop = measured.drop, measured.choice_drop
    if drop is None or choice_drop is None:
        return (REFUSED, "its answers differ and there is no data to judge them by"), tried
    if choice_drop > budget.max_drop:
        return (REFUSED, f"drops by {choice_drop:.4g} on the choice split, allowed are {budget.max_drop:.4g}"), tried
    if accept_unproven:
        if drop.value <= budget.max_drop:
            return (FITS, f"point estimate {drop.value:.4g} accepted without proof"), tried
        return (REFUSED, f"drops by {drop.value:.4g}, allowed are {budget.max_drop:.4g}"), tried
    if tried:
        return (
            UNPROVEN,
            "another candidate was taken to the proof split; a second try would need a stricter bound",
        ), True
    if drop.upper <= budget.max_drop:
        return (FITS, f"drop at most {drop.upper:.4g} at {budget.confidence:.0%} on {drop.n} samples"), True
    return (UNPROVEN, _not_shown(drop, budget)), True


def _not_shown(drop: Drop, budget: Budget) -> str:
    text = (
        f"drop of {drop.value:.4g} on {drop.n} samples may be as much as {drop.upper:.4g} at {budget.confidence:.0%}, "
        f"allowed are {budget.max_drop:.4g}"
    )
    needed = samples_needed(budget.max_drop, budget.confidence)
    if drop.method == "clopper-pearson" and needed > drop.n:
        return f"{text}; at least {needed} proof samples could prove it ({-(-needed * 5 // 3)} in --data)"
    return f"{text}; more samples, or --accept-unproven"


def _rank(measured: Measured, aim: str) -> tuple[float, float]:
    pair = (measured.cost.value, float(measured.bytes))
    return pair if aim == "cost" else (pair[1], pair[0])


def _aim_word(aim: str) -> str:
    return "cheapest" if aim == "cost" else "smallest"


def _limits(measured: Measured, budget: Budget) -> str:
    faults = []
    if budget.max_bytes is not None and measured.bytes > budget.max_bytes:
        faults.append(f"{measured.bytes} bytes, allowed are {budget.max_bytes}")
    if budget.max_cost is not None and measured.cost.value > budget.max_cost:
        faults.append(f"cost {measured.cost.value:.4g}, allowed is {budget.max_cost:.4g}")
    return "; ".join(faults)


def _nothing_fits(ranked: list[Measured], verdicts: dict[str, tuple[str, str]]) -> RefusedError:
    made = [measured for measured in ranked if not measured.fault] or ranked
    order = {UNPROVEN: 0, REFUSED: 1, FAILED: 2}
    nearest = min(made, key=lambda m: (order[verdicts[m.recipe.id][0]], _excess(m)))
    others = "; ".join(f"{name}: {reason}" for name, (_, reason) in verdicts.items() if name != nearest.recipe.id)
    return RefusedError(
        f"no candidate meets the budget; nearest is {nearest.recipe.id}: {verdicts[nearest.recipe.id][1]}"
        + (f" ({others})" if others else ""),
        advice="Allow more with --max-drop, --max-bytes or --max-cost, or give more samples with --data.",
    )


def _excess(measured: Measured) -> float:
    return measured.drop.value if measured.drop is not None else float(measured.bytes)
