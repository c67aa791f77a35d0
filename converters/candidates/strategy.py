"""The search strategy: first the recipe kinds that a target supports, then mixtures of precisions by layer sensitivity.

Sensitivity orders the layers, and measurements decide. Candidates are made in batches; each batch is measured on the
choice split before the next one is planned. So the work is bounded, and each conclusion about a layer is measured on an
artifact. Candidates that do not depend on each other are in one batch, because they can be made at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from converters.candidates.sensitivity import LEVELS4, LEVELS8, Sensitivity
from converters.quality.measured import Budget, Measured
from edgekit.bundle.recipe import DYNAMIC, PRUNED, STATIC, WEIGHTS, WHOLE, Recipe
from edgekit.bundle.targets import TargetProfile

MAX_CANDIDATES = 24  # of one target
NEGLIGIBLE = 1e-3  # divergence below which a recipe needs no repair
SHARES = (0.5, 0.25)  # of the possible 4-bit weights, tried where all of them lose too much
Make = Callable[[list[Recipe]], list[Measured]]


def candidates(profile: TargetProfile, precisions: tuple[str, ...], *, with_data: bool, runtime: str) -> list[Recipe]:
    """The recipe kinds that a target supports; without data only kinds that quantize no activations."""
    symmetric = profile.int8_symmetric and runtime == "onnxruntime"
    return [
        Recipe(precision=precision, symmetric=symmetric and precision == STATIC)
        for precision in precisions
        if with_data or precision not in (STATIC, DYNAMIC)
    ]


def pruned_kinds(kinds: Sequence[Recipe]) -> list[Recipe]:
    """`kinds` without dead channels, after unpruned float kinds as a fallback.

    Where a target supports no float kind, all its unpruned kinds are the fallback.
    """
    lowered = [recipe for recipe in kinds if not recipe.direct]  # direct ones have all channels of the source
    fallback = [recipe for recipe in lowered if not recipe.quantized] or lowered
    pruned = [msgspec.structs.replace(recipe, prune=PRUNED) for recipe in lowered]
    return [*fallback, *pruned, *(recipe for recipe in kinds if recipe.direct)]


def base_of(kinds: Sequence[Recipe]) -> Recipe:
    """The base of the layers' scores: that of the pruned kinds, where there are any."""
    return next((recipe.base for recipe in kinds if recipe.pruned), WHOLE)


class Search:
    """The search for candidates of one target, in batches.

    Args:
        make: Makes and measures recipes, and returns the measurements in the order of the recipes. A recipe that
            cannot be made has a fault.
        budget: Limits on the drops on the choice split.
        most: Largest number of candidates.
    """

    def __init__(self, make: Make, *, budget: Budget, most: int = MAX_CANDIDATES) -> None:
        self._make = make
        self._budget = budget
        self._most = most
        self._measured: dict[str, Measured] = {}

    def run(self, kinds: Sequence[Recipe], scores: Callable[[], Sequence[Sensitivity]]) -> list[Measured]:
        """Make `kinds`, then the candidates that their measurements suggest. Returns all in this order.

        Args:
            kinds: The recipe kinds of the target.
            scores: Returns the layers' sensitivities; called once, when mixtures of precisions are needed.
        """
        self._make_batch(kinds)
        quantized = [r for r in kinds if r.quantized and not r.direct and not self._measured[r.id].fault]
        if any(self._measured[recipe.id].choice_drop is not None for recipe in quantized):
            self._ranges([recipe for recipe in quantized if recipe.precision == STATIC])
            if all(recipe.precision == STATIC for recipe in kinds):  # an accelerator of 8-bit integers runs no mixture
                return list(self._measured.values())
            layers = list(scores())
            self._exceptions(quantized, layers)
            # Recipes beyond the budget cannot lose more bits.
            fitting = [recipe for recipe in quantized if self._within_budget(recipe)]
            four = [recipe for kind in (DYNAMIC, WEIGHTS, STATIC) for recipe in fitting if recipe.precision == kind]
            self._four_bits(four, layers)
        return list(self._measured.values())

    def _make_batch(self, recipes: Iterable[Recipe]) -> None:
        new = {recipe.id: recipe for recipe in recipes if recipe.id not in self._measured}
        room = self._most - len(self._measured)
        for measured in self._make(list(new.values())[:room]):
            self._measured[measured.recipe.id] = measured

    def _within_budget(self, recipe: Recipe) -> bool:
        """True where the recipe was made and is within the budget on the choice split."""
        measured = self._measured.get(recipe.id)
        return measured is not None and not measured.fault and measured.within_on_choice(self._budget)

    def _is_negligible(self, recipe: Recipe) -> bool:
        return self._within_budget(recipe) and self._measured[recipe.id].divergence < NEGLIGIBLE

    def _ranges(self, static: Sequence[Recipe]) -> None:
        """Try other range rules, and equalized weights, where plain static int8 has a noticeable loss."""
        noticeable = [recipe for recipe in static if not self._is_negligible(recipe)]
        self._make_batch(
            msgspec.structs.replace(recipe, ranges=ranges) for recipe in noticeable for ranges in ("percentile", "mse")
        )
        unsolved = [r for r in noticeable if not any(self._within_budget(one) for one in self._same_precision(r))]
        self._make_batch(msgspec.structs.replace(recipe, equalize=True, correct_bias=True) for recipe in unsolved)

    def _same_precision(self, recipe: Recipe) -> list[Recipe]:
        """Every made recipe of the same precision."""
        return [one.recipe for one in self._measured.values() if one.recipe.precision == recipe.precision]

    def _four_bits(self, kinds: Sequence[Recipe], layers: Sequence[Sensitivity]) -> None:
        """Try 4-bit weights: in all layers that can have them, then in fewer layers, the least sensitive first."""
        able = [score for score in layers if score.int4 is not None]
        if not able:
            return
        ends = {layers[0].layer.name, layers[-1].layer.name}
        inner = [score for score in able if score.layer.name not in ends]
        tried = {recipe: [_with_four_bits(recipe, of) for of in (able, inner) if of] for recipe in kinds}
        self._make_batch(one for fours in tried.values() for one in fours)
        for share in SHARES:
            names = _least_sensitive(able, share)
            more = {
                r: _with_four_bits(r, names) for r, fours in tried.items() if not any(map(self._within_budget, fours))
            }
            self._make_batch(more.values())
            for recipe, fewer in more.items():
                tried[recipe].append(fewer)

    def _exceptions(self, kinds: Sequence[Recipe], layers: Sequence[Sensitivity]) -> None:
        """Keep the most sensitive layers in float, more of them each time, until the recipe is within the budget.

        This is done for every kind beyond the budget, and for static int8 with a noticeable loss, as long as the
        mixture can be the best for an aim. Recipes with the largest possible gain come first.
        """
        open_recipes = [recipe for recipe in kinds if not self._within_budget(recipe) or recipe.precision == STATIC]
        step = 0
        while open_recipes and len(self._measured) < self._most:
            worst = {
                recipe: self._kept(recipe, layers, step) for recipe in open_recipes if not self._is_negligible(recipe)
            }
            worst = {recipe: scores for recipe, scores in worst.items() if len(scores) < len(layers)}
            gains = {r: self._gain(r, sum(score.layer.weights for score in scores)) for r, scores in worst.items()}
            hopeful = sorted((recipe for recipe in gains if gains[recipe] > 0), key=lambda recipe: -gains[recipe])
            mixed = {recipe: _with_floats(recipe, worst[recipe]) for recipe in hopeful}
            self._make_batch(mixed.values())
            open_recipes = [recipe for recipe, one in mixed.items() if not self._within_budget(one)]
            step += 1

    def _kept(self, recipe: Recipe, layers: Sequence[Sensitivity], step: int) -> list[Sensitivity]:
        """The layers to keep in float in a step.

        In a deep network one layer changes little, so the first mixture keeps an eighth of the layers, and each further
        one twice as many. Rounded weights save nothing but bytes: there, the layers with the largest loss per weight
        are kept until as little loss is left as the budget allows, if drops grow as losses or as their square roots.
        """
        if recipe.precision != WEIGHTS:
            return _most_sensitive(recipe, layers, max(1, len(layers) // 8) << step)
        ratio = self._allowed(recipe)
        left = ratio if step == 0 else ratio**2 / 2 ** (step - 1)
        remaining = wanted = sum(_loss(recipe, score) for score in layers)
        kept: list[Sensitivity] = []
        for score in sorted(layers, key=lambda score: -_loss(recipe, score) / score.layer.weights):
            if remaining <= left * wanted:
                break
            kept.append(score)
            remaining -= _loss(recipe, score)
        return kept

    def _allowed(self, recipe: Recipe) -> float:
        """The share of the drop of a recipe that the budget allows, of its worst output; at most a half."""
        judgement = self._measured[recipe.id].judgement
        limits = self._budget.limits(judgement) if judgement else ()
        shares = [limit / output.choice_drop for output, limit in limits if output.choice_drop > limit]
        return min(0.5, *shares) if shares else 0.5

    def _gain(self, recipe: Recipe, more: int) -> float:
        """The least advantage of `recipe`, with `more` bytes, over each other kind within the budget.

        The advantage is the saved share of bytes or cost, whichever is more. A float layer takes at least one byte per
        weight more than an 8-bit layer. An advantage of 0 or less means that the recipe is the best for no aim.
        """
        measured = self._measured[recipe.id]
        saved = [
            max(1.0 - (measured.bytes + more) / one.bytes, 1.0 - measured.cost.value / one.cost.value)
            for one in self._measured.values()
            if self._within_budget(one.recipe)
            and (one.recipe.precision, one.recipe.prune) != (recipe.precision, recipe.prune)
        ]
        return min(saved, default=1.0)


def _least_sensitive(able: Sequence[Sensitivity], share: float) -> list[Sensitivity]:
    """Layers with about `share` of the weights; first those with the smallest loss per saved byte."""
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
    """The layers with the largest loss in this kind."""
    return sorted(layers, key=lambda score: -_loss(recipe, score))[:count]


def _loss(recipe: Recipe, score: Sensitivity) -> float:
    """The loss of a layer in this kind.

    Static int8 also rounds inputs, so its loss is the 8-bit score. Other kinds round weights only, so their loss is the
    4-bit score. Where a layer has none, the 8-bit score is scaled by the square of the ratio of levels, because
    divergences grow with the square of the step.
    """
    if recipe.precision == STATIC:
        return score.int8
    return score.int4 if score.int4 is not None else score.int8 * (LEVELS8 / LEVELS4) ** 2


def _with_floats(recipe: Recipe, scores: Sequence[Sensitivity]) -> Recipe:
    return msgspec.structs.replace(recipe, float_layers=tuple(score.layer.name for score in scores))


def _with_four_bits(recipe: Recipe, scores: Sequence[Sensitivity]) -> Recipe:
    names = tuple(sorted(score.layer.name for score in scores))
    return msgspec.structs.replace(recipe, int4_layers=names, rounding="gptq")
