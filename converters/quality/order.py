"""The order of candidates: which is better for an aim, which are equal with another, and which are tested first."""

from __future__ import annotations

from collections.abc import Sequence

from converters.quality.measured import Measured

AIMS = ("cost", "size")
Rank = tuple[float, ...]


def ranks(candidates: Sequence[Measured], aim: str) -> dict[str, Rank]:
    """The rank of each candidate by id; the smallest is the best for `aim`.

    By cost, candidates within the estimate's error of a cheapest one are equal with it, and the smaller artifact ranks
    first. The cheapest that is further away begins the next class.
    """
    if aim != "cost":
        return {one.recipe.id: (float(one.bytes), one.cost.value) for one in candidates}
    found: dict[str, Rank] = {}
    cheapest, number = None, 0
    for one in sorted(candidates, key=lambda one: (one.cost.value, one.bytes)):
        if cheapest is None or not ties(cheapest, one):
            cheapest, number = one, number + 1
        found[one.recipe.id] = (float(number), float(one.bytes), one.cost.value)
    return found


def ties(cheapest: Measured, other: Measured) -> bool:
    """True where the estimate cannot tell the cost of `other`, which is no less, from that of `cheapest`."""
    error = max(cheapest.cost_error, other.cost_error)
    return cheapest.cost.unit == other.cost.unit and other.cost.value <= cheapest.cost.value * (1.0 + error)


def sequence(fit: Sequence[Measured], aim: str) -> tuple[list[Measured], dict[str, str]]:
    """The order in which candidates are tested on the proof split, and the reasons why others are not tested.

    The order does not depend on the proof split. Each next candidate is better for the aim and further from the float
    model. A candidate that is worse for the aim and further from the float model than another one is not tested,
    because its failure would end the tests early.
    """
    order: list[Measured] = []
    skipped: dict[str, str] = {}
    rank = ranks(fit, aim)
    for measured in sorted(fit, key=lambda one: rank[one.recipe.id]):  # the best for the aim first
        own = rank[measured.recipe.id]
        # A candidate that is better for the aim and no further from float; candidates with the same answers are equal.
        better = next((one for one in fit if rank[one.recipe.id] < own and _no_further(one, measured)), None)
        if measured.same:
            continue
        if better is None:
            order.append(measured)
            continue
        equal = aim == "cost" and rank[better.recipe.id][0] == own[0]
        word = "is smaller at the same cost" if equal else "costs less" if aim == "cost" else "is smaller"
        near = "answers as the float model does" if better.same else "is nearer to the float model"
        skipped[measured.recipe.id] = f"not tested: {better.recipe.id} {word} and {near}"
    return order[::-1], skipped


def dominated(fit: Sequence[Measured]) -> dict[str, str]:
    """Reasons by id: of candidates that are not better than another one in cost, size, or distance from float."""
    reasons: dict[str, str] = {}
    for index, measured in enumerate(fit):
        for other_index, other in enumerate(fit):
            if other is measured or other.recipe.id in reasons or measured.same > other.same:
                continue
            mine, theirs = _losses(measured), _losses(other)
            if all(t <= m for t, m in zip(theirs, mine, strict=True)) and (theirs != mine or other_index < index):
                reasons[measured.recipe.id] = (
                    f"{other.recipe.id} costs no more, is no larger and no further from the float model"
                )
                break
    return reasons


def _no_further(one: Measured, than: Measured) -> bool:
    return one.same or (not than.same and one.divergence <= than.divergence)


def _losses(measured: Measured) -> tuple[float, ...]:
    drops = [output.choice_drop for output in measured.judgement.outputs] if measured.judgement else []
    return (measured.cost.value, measured.bytes, measured.divergence, *drops)
