"""Chooses the best candidate that is proven to be within the budget, and gives a verdict for every other candidate.

Many candidates can be tested without weakening the proof, because the order of the tests is fixed before the proof
samples are used: from the candidate nearest to float to the most aggressive one, each at the full confidence. The first
failure ends the tests. So the probability that any candidate beyond the budget passes is at most 1 - confidence, for
any number of candidates: the first such candidate in the order would have to pass (fixed-sequence testing; Maurer,
Hothorn and Lehmacher 1995).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from converters.quality.divergence import likely_drop
from converters.quality.drop import CLOPPER_PEARSON, Drop, Judgement, samples_needed
from converters.quality.measured import (
    Budget,
    Measured,
    excess_in_estimate,
    excess_on_choice,
    unproven_class,
    unproven_outputs,
)
from converters.quality.order import dominated, ranks, sequence, ties
from converters.words import in_words, titles, titles_with_ids
from edgekit.errors import RefusedError

CHOSEN, FITS, UNPROVEN, UNTESTED = "chosen", "fits", "unproven", "untested"
DOMINATED, REFUSED, FAILED = "dominated", "refused", "failed"
FAR = 0.3
NEARNESS = (UNPROVEN, UNTESTED, DOMINATED, REFUSED, FAILED)  # order of "nearest" where no candidate fits


class Choice(msgspec.Struct, frozen=True):
    """The result.

    Attributes:
        chosen: The chosen id.
        proven: Its drops are proven to be within the budget.
        verdicts: (verdict, reason) by id.
        all_proven: Every id that is proven to be within the budget by statistics.
    """

    chosen: str
    proven: bool
    verdicts: dict[str, tuple[str, str]]
    all_proven: frozenset[str] = frozenset()


def choose(candidates: Sequence[Measured], budget: Budget, *, aim: str, accept_unproven: bool) -> Choice:
    """Choose the cheapest (or smallest) candidate that is proven to be within the budget.

    Float candidates with the same answers need no statistics, unless a measured drop is beyond the budget. The others
    are tested on the proof split in the order of `sequence`: every judged output, and with `max_drop_any_class` every
    class. With `accept_unproven`, a point estimate is accepted too; the result is then marked as not proven.

    Raises:
        RefusedError: no candidate fits; the message names the nearest one.
    """
    candidates = [_checked_same(measured, budget) for measured in candidates]
    verdicts: dict[str, tuple[str, str]] = {}
    for measured in candidates:
        fault = (
            measured.fault or _limits(measured, budget) or ("" if measured.same else _choice_fault(measured, budget))
        )
        if fault:
            verdicts[measured.recipe.id] = (FAILED if measured.fault else REFUSED, fault)
    rank = ranks([m for m in candidates if m.recipe.id not in verdicts], aim)
    fit = sorted((m for m in candidates if m.recipe.id not in verdicts), key=lambda m: rank[m.recipe.id])
    whole = fit
    verdicts.update({name: (DOMINATED, reason) for name, reason in dominated(fit).items()})
    fit = [m for m in fit if m.recipe.id not in verdicts]
    order, skipped = sequence(fit, aim)
    verdicts.update(
        {m.recipe.id: (FITS, "same answers as the float model, within parity tolerance") for m in fit if m.same}
    )
    verdicts.update({name: (UNTESTED, reason) for name, reason in skipped.items()})
    verdicts.update(_test_in_order(order, budget))
    proven = {m.recipe.id for m in fit if verdicts[m.recipe.id][0] == FITS}
    if accept_unproven:
        verdicts.update(_accepted(fit, verdicts, budget, candidates))
        while revived := _revived(whole, verdicts):
            verdicts.update(dict.fromkeys((m.recipe.id for m in revived), (UNTESTED, "")))
            verdicts.update(_accepted(revived, verdicts, budget, candidates))
    fitting = [m for m in whole if verdicts[m.recipe.id][0] == FITS]
    if not fitting:
        raise _nothing_fits(candidates, verdicts, budget)
    best = _best(fitting, aim)
    name = best.recipe.id
    verdicts[name] = (CHOSEN, f"{_why(best, fit, verdicts, aim)}; {verdicts[name][1]}")
    all_proven = frozenset(m.recipe.id for m in fit if m.recipe.id in proven and m.judgement is not None)
    return Choice(name, name in all_proven, {m.recipe.id: verdicts[m.recipe.id] for m in candidates}, all_proven)


def finalists(candidates: Sequence[Measured], choice: Choice, *, aim: str, count: int) -> list[str]:
    """The ids of the best candidates that fit, at most `count`: the chosen one first."""
    fitting = [m for m in candidates if choice.verdicts[m.recipe.id][0] in (FITS, CHOSEN)]
    rank = ranks(fitting, aim)
    ids = sorted((m.recipe.id for m in fitting), key=lambda name: (name != choice.chosen, rank[name]))
    return ids[:count]


def choose_by_counts(counted: Sequence[Measured], choice: Choice, budget: Budget, *, aim: str) -> Choice:
    """Choose again among candidates that fit, by costs that were counted after the first choice.

    The proof holds for each of them: with a probability of at least the confidence, no candidate beyond the budget
    passed the tests, so any of those that passed may be taken.

    Args:
        counted: Some of those that fit, with their counted costs; the chosen one is among them.
        choice: The choice by estimates.
        budget: Its limit on the cost holds for counts too.
        aim: As `choose`.
    """
    verdicts = dict(choice.verdicts)
    verdicts[choice.chosen] = (FITS, verdicts[choice.chosen][1].partition("; ")[2])
    faults = {m.recipe.id: fault for m in counted if (fault := _limits(m, budget))}
    within = [m for m in counted if m.recipe.id not in faults]
    if not within:
        raise _nothing_fits(counted, {name: (REFUSED, fault) for name, fault in faults.items()}, budget)
    verdicts.update({name: (REFUSED, fault) for name, fault in faults.items()})
    name = _best(within, aim).recipe.id
    among = f" of {len(counted)} candidates" if len(counted) > 1 else ""
    verdicts[name] = (CHOSEN, f"the cheapest that fits, by counted instructions{among}; {verdicts[name][1]}")
    return Choice(name, name in choice.all_proven, verdicts, choice.all_proven)


def _checked_same(measured: Measured, budget: Budget) -> Measured:
    """The candidate; not marked as `same` where a measured drop is beyond the budget."""
    if measured.same and measured.judgement is not None and excess_in_estimate(measured.judgement, budget):
        return msgspec.structs.replace(measured, same=False)
    return measured


def _best(fitting: Sequence[Measured], aim: str) -> Measured:
    rank = ranks(fitting, aim)  # again, because the cheapest of all may not be among these
    return min(fitting, key=lambda m: rank[m.recipe.id])


def _why(best: Measured, fit: Sequence[Measured], verdicts: dict[str, tuple[str, str]], aim: str) -> str:
    if aim != "cost":
        return "the smallest that fits"
    equal = [
        one
        for one in fit
        if one.cost.value < best.cost.value and ties(one, best) and verdicts[one.recipe.id][0] in (FITS, UNTESTED)
    ]
    if not equal:
        return "the cheapest that fits"
    cheapest = min(equal, key=lambda one: one.cost.value)
    error = max(best.cost_error, cheapest.cost_error)
    return (
        f"the smallest of the cheapest: the estimate, with a median error of {error:.0%}, "
        f"cannot tell its cost from that of {cheapest.recipe.id}"
    )


def _test_in_order(order: Sequence[Measured], budget: Budget) -> dict[str, tuple[str, str]]:
    """Verdicts of the tests on the proof split, up to the first failure."""
    verdicts: dict[str, tuple[str, str]] = {}
    failed = ""
    for step, measured in enumerate(order, 1):
        judgement, name = measured.judgement, measured.recipe.id
        assert judgement is not None  # a candidate without data was refused before
        where = f" (proof step {step} of {len(order)})" if len(order) > 1 else ""
        if failed:
            verdicts[name] = (
                UNTESTED,
                f"not tested: the tests ended at {failed}, which is nearer to float and was not proven",
            )
            continue
        fault = _unproven_reason(judgement, budget)
        verdicts[name] = (UNPROVEN, fault + where) if fault else (FITS, _proven_text(judgement, budget) + where)
        failed = name if fault else ""
    return verdicts


def _accepted(
    fit: Sequence[Measured],
    verdicts: dict[str, tuple[str, str]],
    budget: Budget,
    candidates: Sequence[Measured],
) -> dict[str, tuple[str, str]]:
    """Verdicts of candidates that are judged by their point estimates.

    Of many pruned candidates near the budget, the smallest whose estimate fits is often one that was lucky. So a pruned
    candidate also has to fit by the drop that the float model's probabilities foretell (`expected_drop`, for accuracy),
    and by the drop that its divergence suggests, as all candidates together show it and as others show it.
    """
    accepted = {}
    rate = drop_per_divergence(candidates)
    for measured in fit:
        if verdicts[measured.recipe.id][0] == FITS or measured.judgement is None:
            continue
        faults = [
            f"{_of(output.name, measured.judgement)}drop of {output.estimate:.4g}, the limit is {limit:.4g}"
            for output, limit in budget.limits(measured.judgement)
            if not output.estimate <= limit
        ]
        if measured.recipe.lossy and not faults:
            faults = _foretold_fault(measured, measured.judgement, rate, budget)
        worst, most = measured.judgement.worst, budget.max_drop_any_class
        if most is not None and worst is not None and not worst.drop.value <= most:
            faults.append(f"{worst.name}: drop of {worst.drop.value:.4g}, the limit is {most:.4g}")
        if faults:
            accepted[measured.recipe.id] = (REFUSED, "; ".join(faults))
        else:
            estimate = measured.judgement.outputs[0].estimate
            accepted[measured.recipe.id] = (FITS, f"point estimate {estimate:.4g} accepted without proof")
    return accepted


def _foretold_fault(measured: Measured, judgement: Judgement, rate: float, budget: Budget) -> list[str]:
    """Why a candidate whose point estimate fits is likely to lose more; empty where it is not."""
    output, limit = next(budget.limits(judgement))
    foretold = {
        "the float model's probabilities foretell": judgement.expected or 0.0,
        "its divergence suggests": rate * measured.divergence,
    }
    if output.drop.method == CLOPPER_PEARSON:
        likely = likely_drop(output.estimate, output.drop.n, measured.divergence)
        foretold[f"its divergence, with so few samples as {output.drop.n}, suggests"] = likely
    source, drop = max(foretold.items(), key=lambda one: one[1])
    return [f"drop of {output.estimate:.4g}, and {source} one of {drop:.4g}; the limit is {limit:.4g}"] * (drop > limit)


def _revived(fit: Sequence[Measured], verdicts: dict[str, tuple[str, str]]) -> list[Measured]:
    """The dominated candidates whose dominating ones were all refused by their point estimates."""
    left = [m for m in fit if verdicts[m.recipe.id][0] != REFUSED]
    still = dominated(left)
    return [m for m in left if verdicts[m.recipe.id][0] == DOMINATED and m.recipe.id not in still]


def drop_per_divergence(candidates: Sequence[Measured], *, on_choice: bool = False) -> float:
    """The slope of the decision output's drop over the divergence, by least squares through 0; at least 0.

    The drop is the expected one where it is known, of all samples or those of the choice split. Candidates with a
    divergence of `FAR` or more say nothing about small drops and do not count.
    """
    used = [one for one in candidates if one.judgement is not None and not one.fault and 0.0 < one.divergence < FAR]
    squares = sum(one.divergence**2 for one in used)
    drop = _likely_drop_on_choice if on_choice else _likely_drop
    products = sum(one.divergence * drop(one.judgement) for one in used if one.judgement is not None)
    return max(products / squares, 0.0) if squares else 0.0


def _likely_drop(judgement: Judgement) -> float:
    return judgement.outputs[0].estimate if judgement.expected is None else judgement.expected


def _likely_drop_on_choice(judgement: Judgement) -> float:
    expected = judgement.expected_on_choice
    return judgement.outputs[0].choice_drop if expected is None else expected


def _choice_fault(measured: Measured, budget: Budget) -> str:
    if measured.judgement is None:
        return "its answers differ, and there is no data to judge them"
    return "; ".join(
        f"{_of(output.name, measured.judgement)}drop of {output.choice_drop:.4g} on the choice split, "
        f"the limit is {limit:.4g}"
        for output, limit in excess_on_choice(measured.judgement, budget)
    )


def _of(output: str, judgement: Judgement) -> str:
    """The name of an output for a message; empty where it is the only one."""
    return f"output {output}: " if len(judgement.outputs) > 1 else ""


def _proven_text(judgement: Judgement, budget: Budget) -> str:
    first = judgement.outputs[0].drop
    kind = ", asymptotic bound" if first.asymptotic else ""
    text = f"drop at most {first.upper:.4g} at {budget.confidence:.0%} on {first.n} samples{kind}"
    others = len(judgement.outputs) - 1
    if others:
        text += f"; {others} other output{'s' if others > 1 else ''} within {'their' if others > 1 else 'its'} limit"
    if budget.max_drop_any_class is not None and judgement.hardest is not None:
        text += f"; at most {judgement.hardest.drop.upper:.4g} in every class"
    return text


def _unproven_reason(judgement: Judgement, budget: Budget) -> str:
    """Why the candidate is not proven; empty where every test passed."""
    faults = [
        _of(output.name, judgement) + _bound_fault(output.drop, limit, budget.confidence)
        for output, limit in unproven_outputs(judgement, budget)
    ]
    hardest, limit = unproven_class(judgement, budget), budget.max_drop_any_class
    if hardest is not None and limit is not None:
        faults.append(f"{hardest.name}: {_bound_fault(hardest.drop, limit, budget.confidence, in_class=True)}")
    return "; ".join(faults)


def _bound_fault(drop: Drop, limit: float, confidence: float, *, in_class: bool = False) -> str:
    needed = samples_needed(limit, confidence)
    if drop.n == 0:
        return f"no proof samples; {needed or 'more'} could prove a drop of at most {limit:.4g}"
    text = (
        f"drop of {drop.value:.4g} on {drop.n} samples may be as much as {drop.upper:.4g} at {confidence:.0%}, "
        f"the limit is {limit:.4g}"
    )
    if drop.method == CLOPPER_PEARSON and needed > drop.n:
        rows = -(-needed * 5 // 3)
        return (
            f"{text}; at least {needed} proof samples{' of it' if in_class else ''} ({rows} in --data) could prove it"
        )
    return f"{text}; give more samples, or --accept-unproven"


def _limits(measured: Measured, budget: Budget) -> str:
    faults = []
    if budget.max_bytes is not None and measured.bytes > budget.max_bytes:
        faults.append(f"{measured.bytes} bytes, the limit is {budget.max_bytes}")
    if budget.max_cost is not None and measured.cost.value > budget.max_cost:
        faults.append(f"cost {measured.cost.value:.4g} {measured.cost.unit}, the limit is {budget.max_cost:.4g}")
    return "; ".join(faults)


def _nothing_fits(candidates: Sequence[Measured], verdicts: dict[str, tuple[str, str]], budget: Budget) -> RefusedError:
    recipes = [measured.recipe for measured in candidates]
    named, short = titles_with_ids(recipes), titles(recipes)
    if all(measured.fault for measured in candidates):
        reasons = dict.fromkeys(measured.fault for measured in candidates)
        listed = [
            f"{'; '.join(named[m.recipe.id] for m in candidates if m.fault == reason)}: {in_words(reason, short)}"
            for reason in reasons
        ]
        return RefusedError(
            "no candidate could be made: " + "\n  ".join(listed),
            advice="Change the model where a layer is named, or choose another target (`edgekit targets`).",
        )
    made = [measured for measured in candidates if not measured.fault] or list(candidates)
    nearest = min(made, key=lambda m: (NEARNESS.index(verdicts[m.recipe.id][0]), _excess(m, budget))).recipe.id
    told = {name: f"{named[name]}: {in_words(reason, short)}" for name, (_, reason) in verdicts.items()}
    others = [f"\n  {text}" for name, text in told.items() if name != nearest]
    return RefusedError(
        f"no candidate meets the budget; nearest is {told[nearest]}" + "".join(others), advice=_wider(made, budget)
    )


def _wider(candidates: Sequence[Measured], budget: Budget) -> str:
    """Advice on the limits that candidates exceed."""
    options = [] if all(_limits(measured, budget) for measured in candidates) else ["--max-drop"]
    if any(measured.bytes > (budget.max_bytes or measured.bytes) for measured in candidates):
        options.append("--max-bytes")
    if any(measured.cost.value > (budget.max_cost or measured.cost.value) for measured in candidates):
        options.append("--max-cost")
    listed = " or ".join(", ".join(options).rsplit(", ", 1))
    return f"Raise {listed}" + (", or give more samples with --data." if "--max-drop" in options else ".")


def _excess(measured: Measured, budget: Budget) -> tuple[float, float]:
    """How far a candidate is beyond the limits of size and cost, as a share, and then by its drop or its size."""
    size = measured.bytes / budget.max_bytes if budget.max_bytes else 0.0
    cost = measured.cost.value / budget.max_cost if budget.max_cost else 0.0
    drop = measured.drop.value if measured.drop is not None else float(measured.bytes)
    return max(size, cost, 1.0), drop
