"""The search for pruned candidates: pairs of a recipe and a share of the channels, by predicted divergence. Pure.

It begins with the recipes that are within the budget without pruning. The divergence of a pair is predicted as the
recipe's own divergence plus that of the pruned float graph.

The divergence at which the budget is spent is estimated from all candidates together, because the drop of a single one
on a small choice split says little: drops grow about with the square root of the divergence. Shares of a few samples
count with what their divergence foretells: of 16 samples, none changes in most candidates that are beyond the budget.
Where a graph that was fitted to few samples turns out far worse on others, larger shares are taken for worse too. Each
round tries the pairs that promise most for the aim below this divergence and below shares of it, so that a safer
candidate exists where the proof refuses a bold one. What was measured goes before what was predicted: shares are halved
between the best candidate within the budget and the next one beyond it. Recovery takes as long as a few candidates, so
at most one is recovered in a round: of the candidates that would be the best one, but turned out a little beyond the
budget, that of the nearest. At the end, that of the best candidate is recovered: it then has the same bytes and cost,
and is nearer to the float model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from converters.quality.divergence import likely_drop
from converters.quality.drop import CLOPPER_PEARSON
from converters.quality.measured import Budget, Measured
from converters.quality.selection import FAR, drop_per_divergence
from edgekit.bundle.recipe import Recipe

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
FARTHEST = 3.0  # largest factor from the divergence that spends the budget to one that is tried before any was too much
HALF = 0.05  # half of the distance between two shares
MOST = 12  # candidates of this search, and no more than were made without pruning
ENOUGH = 3  # candidates within the budget, of which the proof may refuse the boldest
EQUAL = 1.02  # ratio of two costs that the estimate cannot tell apart
SAFER = 0.3  # difference of two partners' drops on the choice split, as a share of the limit
PARTNERS = 4  # recipes that are combined with levels
FIRST_LIMIT = 0.01  # divergence that about one point of accuracy costs
BOUNDS = ((1.0, 0.4), (0.7, 0.2), (1.3, 0.55))  # factors on the divergence that spends the budget, by round
HIGHEST = 1.6  # largest factor from the largest divergence within the budget to the limit
UNDERRATED = 6.0  # largest ratio of a measured to a predicted divergence that is taken for one of all levels
FIRST_SHARE = 0.8  # of the first level, from which on the divergence says where to go
GROWTH = 2.5  # power of the removed share with which the divergence of levels grows
STEEP = 4.0  # power of the removed share with which an underrated divergence falls
RECOVERABLE = 1.5  # largest foretold drop, as a share of its limit, that recovery is likely to bring within it
LUCK = 1.5  # largest ratio of a measured to a foretold drop that is taken for bad luck
LEAST_DROP = 1e-9
APART = 0.7  # ratio of the divergences of two partners
FIXED_BYTES = 0.15  # share of a file that does not shrink with the weights

Kept = tuple[tuple[str, str], ...] | msgspec.UnsetType


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
        recovers_all: Recover every level, whatever it lost.
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
        recovers_all: bool = False,
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
        self._recover, self._recovers_all = recovered, recovers_all
        self._recoveries: dict[float, list[PrunedShare]] = {}
        self._shares, self._halves = list(shares), halves
        self._tried: list[tuple[Pair, Measured, bool]] = []  # with True where the candidate is within the budget
        self._seen: list[Measured] = []
        self._made: list[Kept] = []  # what the layers of all levels keep

    def run(self, measured: Sequence[Measured]) -> list[Measured]:
        """The pruned candidates that were made, after those of `measured`."""
        partners = self._partners(measured)
        self._seen = list(measured)
        found: list[Measured] = []
        tried: set[str] = set()
        most = min(MOST, len(measured))
        for number in range(MOST):
            limit = self._limit([*measured, *found])
            bounds = [factor * limit for factor in BOUNDS[number % len(BOUNDS)]]
            pairs = [
                pair
                for pair in self._pairs(partners, bounds)
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
            if self._recovers_all:
                chosen = [one for pair in chosen for one in self._recovered(pair)][: most - len(found)]
            made = self._try(chosen)
            lost = self._worth_recovery() if len(found) + len(made) < most else None
            recovered = [one for one in self._recovered(lost) if one.recipe != lost.recipe] if lost else []
            recovered = recovered[: most - len(found) - len(made)]
            found += [*made, *self._try(recovered)]
            tried |= {pair.recipe.id for pair in [*chosen, *recovered]}
        best = self._best()
        if best is not None and len(found) < most:
            nearer = [pair for pair in self._recovered(best) if pair.recipe.id not in tried]
            found += self._try(nearer[: most - len(found)])
        return found

    def _try(self, pairs: Sequence[Pair]) -> list[Measured]:
        """Make and measure `pairs`, and learn from them."""
        made = self._make([pair.recipe for pair in pairs]) if pairs else []
        self._seen += made
        for pair, one in zip(pairs, made, strict=True):
            if not one.fault:  # which says nothing about the budget
                self._tried.append((pair, one, self._fits(one) and self._foretold_spent(one) <= 1.0))
                self._learn(pair, one)
        return made

    def _worth_recovery(self) -> Pair | None:
        """The pair nearest to the budget of those that recovery may bring in, and that would be the best ones then."""
        best, found = self._best(), []
        for pair, made, fits in self._tried:
            better = best is None or pair.value < best.value
            spent, foretold = self._spent(made), self._foretold_spent(made)
            near = foretold <= RECOVERABLE and spent <= LUCK * RECOVERABLE
            if not fits and better and near and pair.level.share not in self._recoveries:
                found.append((max(spent, foretold), pair))
        return min(found, key=lambda one: one[0])[1] if found and not self._recovers_all else None

    def _best(self) -> Pair | None:
        """The best pair so far that is within the budget."""
        return min((pair for pair, _, fits in self._tried if fits), key=lambda pair: pair.value, default=None)

    def _failed_below(self, best: Pair) -> list[float]:
        """Smaller shares of the same recipe that were beyond the budget."""
        return [
            pair.level.share
            for pair, _, fits in self._tried
            if not fits and pair.partner is best.partner and pair.level.share < best.level.share
        ]

    def _is_done(self, pairs: Sequence[Pair], limit: float) -> bool:
        """True where the best pair lies beside one beyond the budget, and safer ones were made."""
        best = self._best()
        if best is None or sum(fits for _, _, fits in self._tried) < ENOUGH or not self._failed_below(best):
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
        if failed:
            inside = inside or self._half_way(best, failed, tried)
            return inside[len(inside) // 2] if inside else None
        if any(pair.value < best.value for pair in chosen):
            return None
        further = [share for share in self._shares if share < best.level.share]
        while not inside and further:
            self._make_level(further[0])
            inside = self._untried(best, failed, tried)
            further = [share for share in self._shares if share < best.level.share]
        if inside and inside[0].divergence > FARTHEST * limit:
            inside = self._half_way(best, inside[0].level.share, tried)
        return inside[0] if inside and inside[0].divergence <= FARTHEST * limit else None

    def _half_way(self, best: Pair, share: float, tried: set[str]) -> list[Pair]:
        """The pair of the recipe of `best` half way to a smaller `share`; empty where that is too near."""
        if not self._halves or best.level.share - share <= HALF + 0.01:
            return []
        self._make_level(round((share + best.level.share) / 2, 2))
        return self._untried(best, share, tried)

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
        """As `_spent`, with the drop of the decision output that is likely on other samples.

        It is the drop that the float model's probabilities foretell, for accuracy. A drop that counts few samples is
        mixed with what the divergence foretells.
        """
        if one.judgement is None:
            return 0.0
        output, limit = next(self._budget.limits(one.judgement))
        likely = one.judgement.expected_on_choice
        if likely is None:
            likely = output.choice_drop
        if output.drop.method == CLOPPER_PEARSON:
            likely = max(likely, likely_drop(output.choice_drop, self._rows, one.divergence))
        return max(likely / max(limit, LEAST_DROP), self._spent(one, others=True))

    def _foretold_spent(self, one: Measured) -> float:
        """As `_likely_spent`, or what the divergence of a pruned candidate foretells where that is more.

        The choice of a candidate without proof asks for the same.
        """
        if one.judgement is None:
            return 0.0
        _, limit = next(self._budget.limits(one.judgement))
        foretold = drop_per_divergence(self._seen, on_choice=True) * one.divergence
        return max(self._likely_spent(one), foretold / max(limit, LEAST_DROP))

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

    def _pairs(self, partners: Sequence[Measured], bounds: Sequence[float]) -> list[Pair]:
        """Every pair with the levels so far; makes further ones until the smallest below each bound is known."""
        for bound in bounds:
            while between := self._shares_around(bound):
                likely = self._likely_share(bound)
                self._make_level(min(between, key=lambda share: abs(share - likely)))
        return [self._pair(partner, level) for level in self._levels for partner in partners]

    def _shares_around(self, limit: float) -> list[float]:
        """The shares without a level between the smallest one whose divergence is below `limit` and the next beyond."""
        inside = min((one.share for one in self._levels if self._added(one) <= limit), default=1.0)
        beyond = max((one.share for one in self._levels if self._added(one) > limit), default=0.0)
        return [share for share in self._shares if beyond < share < inside]

    def _likely_share(self, bound: float) -> float:
        """The share whose level probably has the divergence `bound`, from the level that is nearest to it."""
        known = [(self._added(level), level.share) for level in self._levels if self._added(level) > 0.0]
        if not known:
            return FIRST_SHARE
        added, share = min(known, key=lambda one: abs(math.log(one[0] / bound)))
        return 1.0 - (1.0 - share) * math.pow(bound / added, 1.0 / GROWTH)

    def _make_level(self, share: float) -> None:
        self._shares = [one for one in self._shares if one != share]
        level = self._level_at(share)
        if level is None:  # nor can the graph shrink to less
            self._shares = [one for one in self._shares if one > share]
        elif level.base.kept not in self._made:  # two shares may be the same graph, where channels go by blocks
            self._made.append(level.base.kept)
            self._levels = sorted([*self._levels, level], key=lambda one: -one.share)

    def _recovered(self, pair: Pair) -> list[Pair]:
        """The pair with what recovery makes of its level, which further pairs begin with too."""
        share = pair.level.share
        if share not in self._recoveries:
            self._recoveries[share] = self._recover(pair.level)
            self._levels = [self._recoveries[share][0] if one.share == share else one for one in self._levels]
        return [self._pair(pair.partner, level) for level in self._recoveries[share]]

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
        known = {pair.recipe.id for pair in chosen}  # partners that differ in dead channels alone give one recipe
        allowed = [pair for pair in pairs if pair.divergence <= bound and pair.recipe.id not in known]
        if allowed:
            chosen.append(min(allowed, key=lambda pair: (pair.value, pair.partner.bytes, pair.divergence)))
    return chosen
