"""Which candidates to make: the kinds that a target runs, then mixtures of precisions by what each layer bears.

Sensitivity orders the layers and measurement decides: each wave of candidates is made and measured on the choice split
before the next is thought of. So the work is bounded, and nothing is believed of a layer that no artifact showed. What
need not wait for one another is in one wave, since it may be made at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from converters.candidates.sensitivity import LEVELS4, LEVELS8, Sensitivity
from converters.quality.selection import Measured
from edgekit.bundle.recipe import DYNAMIC, PRUNED, STATIC, WEIGHTS, Recipe
from edgekit.bundle.targets import TargetProfile

MOST = 24  # candidates of one target
FAINT = 1e-3  # a distance below which nothing needs to be repaired
SHARES = (0.5, 0.25)  # of the weights that could have 4 bits, where all are too many
Make = Callable[[list[Recipe]], list[Measured]]


def candidates(profile: TargetProfile, precisions: tuple[str, ...], *, with_data: bool, runtime: str) -> list[Recipe]:
    """The kinds that a target runs; without data only those that quantize no activation."""
    symmetric = profile.int8_symmetric and runtime == "onnxruntime"
    return [
        Recipe(precision=precision, symmetric=symmetric and precision == STATIC)
        for precision in precisions
        if with_data or precision not in (STATIC, DYNAMIC)
    ]


def pruned_kinds(kinds: Sequence[Recipe]) -> list[Recipe]:
    """`kinds` without dead channels, behind those of them that are float with all: to fall back to, on any target.

    Where a target runs no float kind, it falls back to any that it does.
    """
    lowered = [recipe for recipe in kinds if not recipe.direct]  # the others have all channels of the source
    kept = [recipe for recipe in lowered if not recipe.quantized] or lowered
    pruned = [msgspec.structs.replace(recipe, prune=PRUNED) for recipe in lowered]
    return [*kept, *pruned, *(recipe for recipe in kinds if recipe.direct)]


class Search:
    """Candidates of one target in waves.

    Args:
        make: Makes and measures recipes, in any order, and gives them back in theirs; what it cannot make has a fault.
        max_drop: The budget, judged on the choice split.
        most: How many candidates to make at most.
    """

    def __init__(self, make: Make, *, max_drop: float, most: int = MOST) -> None:
        self._make = make
        self._max_drop = max_drop
        self._most = most
        self._found: dict[str, Measured] = {}

    def run(self, kinds: Sequence[Recipe], scores: Callable[[], Sequence[Sensitivity]]) -> list[Measured]:
        """All that was made, in order: `kinds` first, then what their measurement suggests.

        Args:
            scores: Asked for once, when a mixture of precisions is wanted.
        """
        self._wave(kinds)
        quantized = [r for r in kinds if r.quantized and not r.direct and not self._found[r.id].fault]
        if any(self._found[recipe.id].choice_drop is not None for recipe in quantized):
            layers = list(scores())
            self._ranges([recipe for recipe in quantized if recipe.precision == STATIC])
            self._exceptions(quantized, layers)
            near = [recipe for recipe in quantized if self._near(recipe)]  # others have no bits to give
            four = [recipe for kind in (DYNAMIC, WEIGHTS, STATIC) for recipe in near if recipe.precision == kind]
            self._four_bits(four, layers)
        return list(self._found.values())

    def _wave(self, recipes: Iterable[Recipe]) -> None:
        new = {recipe.id: recipe for recipe in recipes if recipe.id not in self._found}
        room = self._most - len(self._found)
        for measured in self._make(list(new.values())[:room]):
            self._found[measured.recipe.id] = measured

    def _near(self, recipe: Recipe) -> bool:
        """True where it was made and keeps the budget on the choice split."""
        found = self._found.get(recipe.id)
        return bool(found and not found.fault and found.choice_drop is not None and found.choice_drop <= self._max_drop)

    def _faint(self, recipe: Recipe) -> bool:
        return self._near(recipe) and self._found[recipe.id].distance < FAINT

    def _ranges(self, static: Sequence[Recipe]) -> None:
        """Other readings of the calibration, and evened-out weights, where the plain one is felt."""
        felt = [recipe for recipe in static if not self._faint(recipe)]
        self._wave(
            msgspec.structs.replace(recipe, ranges=ranges) for recipe in felt for ranges in ("percentile", "mse")
        )
        evened = [r for r in felt if not any(self._near(one) for one in self._kin(r))]
        self._wave(msgspec.structs.replace(recipe, equalize=True, correct_bias=True) for recipe in evened)

    def _kin(self, recipe: Recipe) -> list[Recipe]:
        """Every recipe of the same precision that was made."""
        return [found.recipe for found in self._found.values() if found.recipe.precision == recipe.precision]

    def _four_bits(self, kinds: Sequence[Recipe], layers: Sequence[Sensitivity]) -> None:
        """4-bit weights: all that can have them, then fewer where that is too many, the least sensitive first."""
        able = [score for score in layers if score.int4 is not None]
        if not able:
            return
        ends = {layers[0].layer.name, layers[-1].layer.name}
        inner = [score for score in able if score.layer.name not in ends]
        tried = {recipe: [_with_four_bits(recipe, of) for of in (able, inner) if of] for recipe in kinds}
        self._wave(one for fours in tried.values() for one in fours)
        for share in SHARES:
            names = _least_sensitive(able, share)
            more = {r: _with_four_bits(r, names) for r, fours in tried.items() if not any(map(self._near, fours))}
            self._wave(more.values())
            for recipe, fewer in more.items():
                tried[recipe].append(fewer)

    def _exceptions(self, kinds: Sequence[Recipe], layers: Sequence[Sensitivity]) -> None:
        """The most sensitive layers back to float, twice as many each time, until the budget is kept.

        For every kind that misses it, and for static int8 that is only felt; as long as the mixture can be the best for
        an aim, those that could gain most first.
        """
        left = [recipe for recipe in kinds if not self._near(recipe) or recipe.precision == STATIC]
        count = 1
        while count <= len(layers) // 2 and len(self._found) < self._most:
            worst = {recipe: _most_sensitive(recipe, layers, count) for recipe in left if not self._faint(recipe)}
            gains = {r: self._gain(r, sum(score.layer.weights for score in scores)) for r, scores in worst.items()}
            hopeful = sorted((recipe for recipe in gains if gains[recipe] > 0), key=lambda recipe: -gains[recipe])
            mixed = {recipe: _with_floats(recipe, worst[recipe]) for recipe in hopeful}
            self._wave(mixed.values())
            left = [recipe for recipe, one in mixed.items() if not self._near(one)]
            count *= 2

    def _gain(self, recipe: Recipe, more: int) -> float:
        """How far `recipe`, with `more` bytes, may be ahead of each other kind within the budget, at the least.

        The share of its bytes or cost, whichever is saved more of. A layer in float takes at least a byte a weight more
        than one of 8 bits. None above 0 where one of them is no larger and costs no more: it wins for no aim then.
        """
        found = self._found[recipe.id]
        saved = [
            max(1.0 - (found.bytes + more) / one.bytes, 1.0 - found.cost.value / one.cost.value)
            for one in self._found.values()
            if self._near(one.recipe) and (one.recipe.precision, one.recipe.prune) != (recipe.precision, recipe.prune)
        ]
        return min(saved, default=1.0)


def _least_sensitive(able: Sequence[Sensitivity], share: float) -> list[Sensitivity]:
    """Layers with about `share` of the weights, those first that lose least for each byte that they save."""
    ordered = sorted(able, key=lambda score: (score.int4 or 0.0) / score.layer.weights)
    wanted = share * sum(score.layer.weights for score in able)
    taken: list[Sensitivity] = []
    for score in ordered:
        if taken and wanted <= 0:
            break
        taken.append(score)
        wanted -= score.layer.weights
    return taken


def _most_sensitive(recipe: Recipe, layers: Sequence[Sensitivity], count: int) -> list[Sensitivity]:
    """The layers that lose most in this kind.

    Only static int8 rounds inputs by one range. Of the others the score with 4 bits tells, which is of weights alone;
    for layers without one that with 8, times the square of how much coarser 4 bits are, as distances grow.
    """

    def lost(score: Sensitivity) -> float:
        if recipe.precision == STATIC:
            return score.int8
        return score.int4 if score.int4 is not None else score.int8 * (LEVELS8 / LEVELS4) ** 2

    return sorted(layers, key=lost, reverse=True)[:count]


def _with_floats(recipe: Recipe, scores: Sequence[Sensitivity]) -> Recipe:
    return msgspec.structs.replace(recipe, float_layers=tuple(score.layer.name for score in scores))


def _with_four_bits(recipe: Recipe, scores: Sequence[Sensitivity]) -> Recipe:
    names = tuple(sorted(score.layer.name for score in scores))
    return msgspec.structs.replace(recipe, int4_layers=names, rounding="gptq")
