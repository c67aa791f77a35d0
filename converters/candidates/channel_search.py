"""The search for pruned candidates: pairs of a recipe and a share of the channels, by predicted divergence. Pure.

It begins with the recipes that are within the budget without pruning. The divergence of a pair is predicted as the
recipe's own divergence plus that of the pruned float graph.

The divergence at which the budget is spent is estimated from all candidates together, because the drop of a single one
on a small choice split says little: drops grow about with the square root of the divergence. Shares of a few samples
count with what their divergence foretells: of 16 samples, none changes in most candidates that are beyond the budget.
Where a graph that was fitted to few samples turns out far worse on others, larger shares are taken for worse too. Each
round tries the pairs that promise most for the aim below this divergence and below shares of it, so that a safer
candidate exists where the proof refuses a bold one. What was measured goes before what was predicted: shares are halved
between the best candidate within the budget and the next one beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from converters.quality.divergence import likely_drop
from converters.quality.drop import CLOPPER_PEARSON
from converters.quality.measured import Budget, Measured
from edgekit.bundle.recipe import Recipe

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
FARTHEST = 3.0  # largest factor from the divergence that spends the budget to one that is tried before any was too much
HALF = 0.05  # half of the distance between two shares
MOST = 12  # candidates of this search, and no more than were made without pruning
ENOUGH = 4  # candidates within the budget, of which the proof may refuse the boldest
EQUAL = 1.02  # ratio of two costs that the estimate cannot tell apart
SAFER = 0.3  # difference of two partners' drops on the choice split, as a share of the limit
PARTNERS = 4  # recipes that are combined with levels
FIRST_LIMIT = 0.01  # divergence that about one point of accuracy costs
BOUNDS = ((1.0, 0.4), (0.7, 0.2), (1.3, 0.55))  # factors on the divergence that spends the budget, by round
HIGHEST = 1.6  # largest factor from the largest divergence within the budget to the limit
UNDERRATED = 6.0  # largest ratio of a measured to a predicted divergence that is taken for one of all levels
STEEP = 4.0  # power of the removed share with which an underrated divergence falls
FAR = 0.3  # divergence from which on a candidate says nothing about small drops
LEAST_DROP = 1e-9
APART = 0.7  # ratio of the divergences of two partners
FIXED_BYTES = 0.15  # share of a file that does not shrink with the weights


class PrunedShare(msgspec.Struct, frozen=True):
    """A share of the cost, its base recipe, the share of parameters that is left, and the float graph's divergence."""

    share: float
    base: Recipe
    parameters: float
    divergence: float


class Pair(msgspec.Struct, frozen=True):
    """A recipe on a level, with the predicted divergence and the predicted bytes or cost."""

    recipe: Recipe
    partner: Measured
    level: PrunedShare
    divergence: float
    value: float


class ChannelSearch:
    """The search for pruned candidates of one target.

    Args:
        make: Makes and measures recipes; returns the measurements in their order.
        level_at: The level of a share; None where there is none.
        recovered: What recovery makes of a level: one level or two, or the same level.
        cost_of: The estimated cost of a recipe.
        with_base: A recipe with the pruning of a base.
        budget: Limits on the drops on the choice split.
        aim: ``cost`` or ``size``.
        shares: The shares to try, the largest first.
        rows: Samples of the choice split.
        halves: Also make the level half way between the smallest share within the budget and the next one beyond it.
    """

    def __init__(
        self,
        make: Callable[[list[Recipe]], list[Measured]],
        level_at: Callable[[float], PrunedShare | None],
        cost_of: Callable[[Recipe], float],
        with_base: Callable[[Recipe, Recipe], Recipe],
        *,
        budget: Budget,
        aim: str,
        shares: Sequence[float] = SHARES,
        recovered: Callable[[PrunedShare], list[PrunedShare]] = lambda level: [level],
        rows: int = 1000,
        halves: bool = False,
    ) -> None:
        self._make = make
        self._level_at = level_at
        self._cost_of = cost_of
        self._with_base = with_base
        self._budget = budget
        self._aim = aim
        self._rows = rows
        self._factor = 1.0  # of the float graph's divergence
        self._underrated: dict[float, float] = {}  # share -> what pruning was measured to add
        self._levels: list[PrunedShare] = []
        self._recover = recovered
        self._recovered: dict[float, list[PrunedShare]] = {}
        self._shares, self._halves = list(shares), halves
        self._tried: list[tuple[Pair, bool]] = []  # with True where the candidate is within the budget

    def run(self, measured: Sequence[Measured]) -> list[Measured]:
        """The pruned candidates that were made, after those of `measured`."""
        partners = self._partners(measured)
        found: list[Measured] = []
        tried: set[str] = set()
        most = min(MOST, len(measured))
        for number in range(MOST):
            limit = self._limit([*measured, *found])
            bounds = [factor * limit for factor in BOUNDS[number % len(BOUNDS)]]
            pairs = [
                pair
                for pair in self._pairs(partners, max(bounds))
                if pair.recipe.id not in tried and not self._is_beaten(pair, [*measured, *found])
            ]
            chosen = _chosen(pairs, bounds)
            if (further := self._further(tried, limit, chosen)) is not None:
                chosen = [further, *(pair for pair in chosen[1:] if pair.recipe.id != further.recipe.id)]
            elif self._is_done(pairs, limit):
                break
            chosen = chosen[: most - len(found)]
            if not chosen and number >= len(BOUNDS):
                break
            tried |= {pair.recipe.id for pair in chosen}
            chosen = [
                one for pair in chosen for one in self._variants(pair) if one.recipe.id not in tried - {pair.recipe.id}
            ]
            chosen = chosen[: most - len(found)]
            tried |= {pair.recipe.id for pair in chosen}
            made = self._make([pair.recipe for pair in chosen]) if chosen else []
            found += made
            for pair, one in zip(chosen, made, strict=True):
                if not one.fault:  # which says nothing about the budget
                    self._tried.append((pair, self._fits(one) and self._likely_spent(one) <= 1.0))
                    self._learn(pair, one)
        return found

    def _best(self) -> Pair | None:
        """The best pair so far that is within the budget."""
        return min((pair for pair, fits in self._tried if fits), key=lambda pair: pair.value, default=None)

    def _failed_below(self, best: Pair) -> list[float]:
        """Smaller shares of the same recipe that were beyond the budget."""
        return [
            pair.level.share
            for pair, fits in self._tried
            if not fits and pair.partner is best.partner and pair.level.share < best.level.share
        ]

    def _is_done(self, pairs: Sequence[Pair], limit: float) -> bool:
        """True where the best pair lies beside one beyond the budget, and safer ones were made."""
        best = self._best()
        if best is None or sum(fits for _, fits in self._tried) < ENOUGH or not self._failed_below(best):
            return False
        return not any(pair.value < best.value and pair.divergence <= limit for pair in pairs)

    def _further(self, tried: set[str], limit: float, chosen: Sequence[Pair]) -> Pair | None:
        """The pair that brings the best one nearer to the budget, whatever is predicted; None where there is none.

        It is half way to the next share that was beyond the budget. Where none was, and `chosen` has no better pair, it
        is one step further.
        """
        best = self._best()
        if best is None:
            return None
        failed = max(self._failed_below(best), default=0.0)
        inside = self._untried(best, failed, tried)
        if failed and not inside and self._halves and best.level.share - failed > HALF + 0.01:
            self._make_level(round((failed + best.level.share) / 2, 2))
            inside = self._untried(best, failed, tried)
        if failed:
            return inside[len(inside) // 2] if inside else None
        if any(pair.value < best.value for pair in chosen):
            return None
        if not inside and self._shares:
            self._make_level(self._shares.pop(0))
            inside = self._untried(best, failed, tried)
        return inside[0] if inside and inside[0].divergence <= FARTHEST * limit else None

    def _untried(self, best: Pair, lowest: float, tried: set[str]) -> list[Pair]:
        """Pairs of the recipe of `best` with shares between `lowest` and its own, the largest share first."""
        pairs = [self._pair(best.partner, level) for level in self._levels if lowest < level.share < best.level.share]
        return [pair for pair in pairs if pair.recipe.id not in tried]

    def _limit(self, measured: Sequence[Measured]) -> float:
        """The divergence at which the budget is spent, from the drops of all candidates on the choice split."""
        usable = [one for one in measured if one.judgement is not None and 0.0 < one.divergence < FAR and not one.fault]
        spent = sum(self._likely_spent(one) * math.sqrt(one.divergence) for one in usable)
        rate = spent / sum(one.divergence for one in usable) if usable else 0.0
        within = max((one.divergence for one in usable if one.within_on_choice(self._budget)), default=0.0)
        most = HIGHEST * max(within, FIRST_LIMIT)
        return min(1.0 / rate**2, most) if rate > 0.0 else most

    def _spent(self, one: Measured, *, others: bool = False) -> float:
        """The largest drop as a share of its limit; with `others`, of outputs beside the decision output."""
        limits = list(self._budget.limits(one.judgement))[others:] if one.judgement is not None else []
        return max((out.choice_drop / max(limit, LEAST_DROP) for out, limit in limits), default=0.0)

    def _likely_spent(self, one: Measured) -> float:
        """As `_spent`; a drop that counts few samples is mixed with what the divergence foretells."""
        if one.judgement is None or one.judgement.outputs[0].drop.method != CLOPPER_PEARSON:
            return self._spent(one)
        output, limit = next(self._budget.limits(one.judgement))
        likely = likely_drop(output.choice_drop, self._rows, one.divergence) / max(limit, LEAST_DROP)
        return max(likely, self._spent(one, others=True))

    def _is_beaten(self, pair: Pair, measured: Sequence[Measured]) -> bool:
        """True where a candidate within the budget is better for the aim and nearer to the float model."""
        return any(
            self._value(one) <= pair.value and one.divergence <= pair.divergence and self._fits(one) for one in measured
        )

    def _partners(self, measured: Sequence[Measured]) -> list[Measured]:
        """The recipes within the budget that are the best for the aim at their distance from the float model.

        The best value is first. Each next one is clearly nearer to the float model, by its divergence or by its drop,
        or clearly smaller at the same cost, so that two recipes of nearly the same kind are not both tried.
        """
        fit = [
            one
            for one in measured
            if not one.fault and not one.recipe.direct and not one.recipe.lossy and self._fits(one)
        ]
        fit.sort(key=lambda one: (self._value(one), one.divergence))
        front: list[Measured] = []
        for one in fit:
            nearer = not front or one.divergence < APART * min(other.divergence for other in front)
            safer = bool(front) and self._spent(one) < min(map(self._spent, front)) - SAFER
            equal = bool(front) and self._value(one) <= EQUAL * self._value(front[0])
            if nearer or safer or (equal and one.bytes < APART * min(other.bytes for other in front)):
                front.append(one)
        return front[:PARTNERS]

    def _fits(self, one: Measured) -> bool:
        return one.same or one.within_on_choice(self._budget)

    def _value(self, one: Measured) -> float:
        return float(one.bytes) if self._aim == "size" else one.cost.value

    def _pairs(self, partners: Sequence[Measured], limit: float) -> list[Pair]:
        """Every pair with the levels so far; makes further levels as long as their divergence is below the limit."""
        while self._shares and (not self._levels or self._added(self._levels[-1]) <= limit):
            self._make_level(self._shares.pop(0))
        return [self._pair(partner, level) for level in self._levels for partner in partners]

    def _make_level(self, share: float) -> None:
        level = self._level_at(share)
        if level is not None:
            self._levels = sorted([*self._levels, level], key=lambda one: -one.share)

    def _variants(self, pair: Pair) -> list[Pair]:
        """The pair with what recovery made of its level."""
        share = pair.level.share
        if share not in self._recovered:
            self._recovered[share] = self._recover(pair.level)
            self._levels = [self._recovered[share][0] if one.share == share else one for one in self._levels]
        return [self._pair(pair.partner, level) for level in self._recovered[share]]

    def _pair(self, partner: Measured, level: PrunedShare) -> Pair:
        recipe = self._with_base(partner.recipe, level.base)
        if self._aim == "size":
            value = partner.bytes * (FIXED_BYTES + (1.0 - FIXED_BYTES) * level.parameters)
        else:
            value = self._cost_of(recipe)
        return Pair(recipe, partner, level, partner.divergence + self._added(level), value)

    def _added(self, level: PrunedShare) -> float:
        """The divergence that a level is predicted to add to that of a recipe."""
        added = self._factor * level.divergence
        for share, seen in self._underrated.items():
            farther = min((1.0 - level.share) / (1.0 - share), 1.0)
            added = max(added, seen * farther**STEEP)
        return added

    def _learn(self, pair: Pair, measured: Measured) -> None:
        """Correct the factor by a measurement, half of the way (geometric), and note a level that was underrated."""
        added = max(measured.divergence - pair.partner.divergence, 0.0)
        if added > UNDERRATED * pair.level.divergence:
            self._underrated[pair.level.share] = min(added, self._underrated.get(pair.level.share, added))
        if pair.level.divergence > 0.0:
            ratio = added / pair.level.divergence
            self._factor = min(max(math.sqrt(self._factor * max(ratio, 0.25)), 0.5), UNDERRATED)


def _chosen(pairs: Sequence[Pair], bounds: Sequence[float]) -> list[Pair]:
    """The best pair for the aim within each bound of divergence."""
    chosen: list[Pair] = []
    for bound in bounds:
        allowed = [pair for pair in pairs if pair.divergence <= bound and pair not in chosen]
        if allowed:
            chosen.append(min(allowed, key=lambda pair: (pair.value, pair.partner.bytes, pair.divergence)))
    return chosen
