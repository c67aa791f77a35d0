"""The search for pruned candidates, in a world with known divergences and drops."""

import msgspec
import numpy as np
import pytest

from converters.candidates.channel_search import MOST, SHARES, ChannelSearch, PrunedShare
from converters.candidates.levels import with_base
from converters.quality.confidence import paired_drop
from converters.quality.measured import Budget, Measured
from converters.quality.selection import choose
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import CHANNELS, Recipe
from tests.simulators.drops import judgement

OWN = {"float32": (0.0, 4000, 100.0), "int8": (0.002, 1200, 60.0), "int8-dynamic": (0.0025, 1190, 80.0)}


class World:
    """Divergences add up, the drop is a multiple of the divergence, bytes and cost follow the share."""

    def __init__(self, per_share, drop_per_divergence=1.0):
        self.asked = []
        self.levels = []
        self._per_share, self._drop = per_share, drop_per_divergence

    def level(self, share):
        self.levels.append(share)
        base = Recipe(prune=CHANNELS, kept=(("layer", f"0-{round(100 * share)}"),), share=share)
        return PrunedShare(share, base, share, self._per_share(share))

    def measured(self, recipe):
        share = recipe.share if recipe.lossy else 1.0
        own, size, cost = OWN[recipe.precision]
        moved = own + (1.3 * self._per_share(share) if recipe.lossy else 0.0)
        judged = judgement(moved * self._drop)
        same = recipe.precision == "float32" and not recipe.lossy
        size = round(size * (0.2 + 0.8 * share))
        return Measured(recipe, size, Cost("estimate", cost * share, "macs"), same, judged, divergence=moved)

    def make(self, recipes):
        self.asked += recipes
        return [self.measured(recipe) for recipe in recipes]

    def cost(self, recipe):
        return self.measured(recipe).cost.value

    def search(self, aim="size", plain=tuple(OWN)):
        search = ChannelSearch(self.make, self.level, self.cost, with_base, budget=Budget(), aim=aim)
        return search.run([self.measured(Recipe(precision)) for precision in plain] * 4)


def best(found, aim):
    fit = [one for one in found if one.within_on_choice(Budget())]
    return min(fit, key=lambda one: one.bytes if aim == "size" else one.cost.value) if fit else None


@pytest.mark.parametrize("aim", ["size", "cost"])
@pytest.mark.parametrize("scale", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("power", [1.5, 3.0])
def test_search_finds_the_smallest_share_within_the_budget(aim, scale, power):
    """Within its few candidates it comes to the best level, or to the one next to it."""
    world = World(lambda share: scale * (1 - share) ** power)
    found = world.search(aim)
    assert len(found) <= MOST
    assert len({one.recipe.id for one in found}) == len(found)
    every = [Recipe(precision) for precision in OWN]
    every += [with_base(recipe, world.level(share).base) for recipe in every for share in SHARES]
    fit = [one for one in map(world.measured, every) if one.within_on_choice(Budget())]

    def value(one):
        return one.bytes if aim == "size" else one.cost.value

    plain = [world.measured(Recipe(precision)) for precision in OWN]
    assert value(best(found + plain, aim)) <= 1.25 * min(map(value, fit))


@pytest.mark.parametrize("scale", [0.02, 0.1])
@pytest.mark.parametrize("power", [1.5, 3.0])
def test_levels_between_two_shares_are_made_near_the_budget_only(scale, power):
    """The search comes near to the best of twice as many shares, and makes few of them."""
    world = World(lambda share: scale * (1 - share) ** power)
    search = ChannelSearch(world.make, world.level, world.cost, with_base, budget=Budget(), aim="size", halves=True)
    plain = [world.measured(Recipe(precision)) for precision in OWN]
    found = search.run(plain * 4)
    assert len(world.levels) == len(set(world.levels)) <= len(SHARES) + 4
    fine = [round(0.05 * step, 2) for step in range(2, 20)]
    every = [with_base(one.recipe, world.level(share).base) for one in plain for share in fine]
    fit = [one.bytes for one in map(world.measured, every) if one.within_on_choice(Budget())]
    assert best(found + plain, "size").bytes <= 1.1 * min(fit)


class Overfitted(World):
    """Refits of few samples seem a thousand times as good as they are, and of 16 others hardly one changes."""

    def level(self, share):
        made = super().level(share)
        return msgspec.structs.replace(made, divergence=made.divergence / 1000)

    def measured(self, recipe):
        one = super().measured(recipe)
        lost = 1 / 16 if one.divergence > 0.1 else 0.0
        return msgspec.structs.replace(one, judgement=judgement(lost))

    def search(self, aim="size", plain=tuple(OWN)):
        search = ChannelSearch(self.make, self.level, self.cost, with_base, budget=Budget(), aim=aim, rows=16)
        return search.run([self.measured(Recipe(precision)) for precision in plain] * 4)


@pytest.mark.parametrize("power", [3.0, 4.0])
def test_what_few_samples_hide_is_learned_from_what_was_measured(power):
    """The search tries candidates around the divergence that costs a point, not only those that seem free of loss."""
    world = Overfitted(lambda share: 0.5 * (1 - share) ** power)
    found = [one.divergence for one in world.search()]
    assert sum(0.003 < one < 0.02 for one in found) >= 2


def test_levels_are_made_only_as_far_as_they_may_fit():
    """A model that loses much at once costs few refits, and nothing is chosen that is beyond the budget."""
    world = World(lambda share: 5.0 * (1 - share))
    assert best(world.search(), "size") is None
    assert len(world.levels) <= 2


def test_nothing_is_tried_without_a_recipe_within_the_budget():
    """Pruning does not make a recipe better."""
    world = World(lambda share: 0.0, drop_per_divergence=100.0)
    assert world.search(plain=("int8",)) == []


def test_smaller_recipe_of_the_same_cost_is_combined_too():
    """By cost, of two recipes that cost the same the smaller one is pruned first."""
    world = World(lambda share: 0.01 * (1 - share))
    plain = [world.measured(Recipe()), world.measured(Recipe("int8"))]
    plain = [msgspec.structs.replace(one, cost=Cost("estimate", 60.0, "macs")) for one in plain]
    search = ChannelSearch(
        world.make, world.level, lambda recipe: 60.0 * recipe.share, with_base, budget=Budget(), aim="cost"
    )
    assert search.run(plain * 4)[0].recipe.precision == "int8"


def test_no_more_candidates_than_without_pruning():
    """Where few candidates were made before, few are made pruned: the time at most doubles."""
    world = World(lambda share: 0.01 * (1 - share))
    search = ChannelSearch(world.make, world.level, world.cost, with_base, budget=Budget(), aim="size")
    assert len(search.run([world.measured(Recipe("int8"))])) == 1


class Drawn(World):
    """A world whose drops are measured on drawn samples: the choice split guides the search, the proof split judges.

    A candidate truly loses a share of samples equal to its divergence, so those above 0.01 are beyond the budget.
    """

    def __init__(self, rng, rows, per_share):
        super().__init__(per_share)
        self._levels, self._choice, self._rng = rng.random(rows), rows // 4, rng
        self._known = {}

    def measured(self, recipe):
        if recipe.id not in self._known:
            one = super().measured(recipe)
            worse = ((self._levels + self._rng.normal(0, 0.0005)) % 1.0 < one.divergence).astype(float)
            lost = float(worse[: self._choice].mean())
            proof = worse[self._choice :]
            drop = paired_drop(np.ones(len(proof)), 1.0 - proof, 0.95)
            self._known[recipe.id] = msgspec.structs.replace(one, judgement=judgement(lost, drop))
        return self._known[recipe.id]


# A share of 5 % shows only in many draws: about 10 s.
@pytest.mark.parametrize(("rows", "scale"), [(900, 0.02), (2400, 0.03)])
def test_broken_budget_is_certified_in_at_most_5_percent_of_draws_with_pruning(rows, scale):
    """The enlarged search looks at more candidates, and looks again after each; the proof holds for it too."""
    rng, draws, broken, pruned = np.random.default_rng(5), 400, 0, 0
    for _ in range(draws):
        world = Drawn(rng, rows, lambda share: scale * (1 - share))
        plain = [world.measured(Recipe(precision)) for precision in OWN]
        found = [*plain, *world.search()]
        found = list({one.recipe.id: one for one in found}.values())
        taken = choose(found, Budget(), aim="size", accept_unproven=False).chosen
        true = next(one.divergence for one in found if one.recipe.id == taken)
        broken += true > 0.01
        pruned += "kept" in taken
    assert broken <= 0.05 * draws
    assert pruned > 0.2 * draws  # where nothing is ever certified the bound is no news


class Recoverable(World):
    """A world where recovery halves the divergence of a level."""

    def __init__(self, per_share, drop_per_divergence=1.0):
        super().__init__(per_share, drop_per_divergence)
        self.recovered = []

    def recover(self, level):
        self.recovered.append(level.share)
        base = msgspec.structs.replace(level.base, recovery=("distilled",))
        return [msgspec.structs.replace(level, base=base, divergence=level.divergence / 2)]

    def measured(self, recipe):
        one = super().measured(recipe)
        if not recipe.recovery:
            return one
        own = OWN[recipe.precision][0]
        moved = own + (one.divergence - own) / 2
        return msgspec.structs.replace(one, divergence=moved, judgement=judgement(moved * self._drop))

    def search(self, aim="size", plain=tuple(OWN), recovers_all=False):
        search = ChannelSearch(
            self.make, self.level, self.cost, with_base,
            budget=Budget(), aim=aim, recovered=self.recover, recovers_all=recovers_all,
        )  # fmt: skip
        return search.run([self.measured(Recipe(precision)) for precision in plain] * 4)


def test_only_what_is_a_little_beyond_the_budget_is_recovered():
    """A level that fits as it is needs no training, and one that lost far too much is not worth it."""
    world = Recoverable(lambda share: 0.05 * (1 - share) ** 2)
    found = world.search()
    plain = {one.recipe.share: one for one in found if not one.recipe.recovery}
    recovered = {one.recipe.share: one for one in found if one.recipe.recovery}
    assert recovered
    for share in recovered:
        assert 0.01 < plain[share].choice_drop <= 0.015
    assert best(found, "size").recipe.recovery == ("distilled",)
    assert len(world.recovered) == len(set(world.recovered))


def test_the_nearest_to_the_budget_is_recovered_first_and_one_in_a_round():
    """Training takes as long as a few candidates, so what is most likely to come within the budget goes first."""
    world = Recoverable(lambda share: 0.006 * (1 - share), drop_per_divergence=1.5)
    found = world.search()
    plain = [one for one in found if not one.recipe.recovery]
    first = {one.recipe.share: one.choice_drop for one in plain[:2]}
    assert all(0.01 < drop <= 0.015 for drop in first.values())
    assert world.recovered[0] == min(first, key=first.__getitem__)
    assert len(set(first) & set(world.recovered)) == 1


def test_the_best_one_is_recovered_at_the_end():
    """Where nothing was a little beyond the budget, the best one still comes nearer to the float model, once."""
    world = Recoverable(lambda share: 0.005 if share >= 0.5 else 1.0)
    found = world.search()
    smallest = min((one for one in found if one.within_on_choice(Budget())), key=lambda one: one.bytes)
    assert world.recovered == [0.5]
    assert [one.recipe.share for one in found if one.recipe.recovery] == [0.5]
    assert smallest.recipe.share == 0.5
    assert len({one.recipe.id for one in found}) == len(found)


class Blocks(World):
    """Channels go by blocks, so that two shares next to each other are one graph."""

    def level(self, share):
        made = super().level(share)
        base = msgspec.structs.replace(made.base, kept=(("layer", f"0-{round(100 * share) // 20}"),))
        return msgspec.structs.replace(made, base=base)


def test_two_shares_that_are_one_graph_are_tried_once():
    """The second one would be the same file with the same answers under another name."""
    found = Blocks(lambda share: 0.02 * (1 - share) ** 2).search()
    graphs = [(one.recipe.precision, one.recipe.kept) for one in found]
    assert graphs
    assert len(set(graphs)) == len(graphs)


def test_own_training_loop_runs_on_each_level_that_is_tried():
    """What the user's loop brings is not known before it ran."""
    world = Recoverable(lambda share: 0.02 * (1 - share) ** 2)
    found = world.search(recovers_all=True)
    assert found
    assert all(one.recipe.recovery for one in found)


def test_likely_drop_and_not_a_lucky_one_says_what_fits():
    """A candidate that changed nothing on the choice split, but is foretold to lose too much, is not built upon."""

    class Lucky(World):
        def measured(self, recipe):
            one = super().measured(recipe)
            likely = one.judgement.outputs[0].choice_drop
            return msgspec.structs.replace(
                one, judgement=msgspec.structs.replace(judgement(0.0), expected_on_choice=likely)
            )

    honest = World(lambda share: 0.05 * (1 - share) ** 2)
    lucky = Lucky(lambda share: 0.05 * (1 - share) ** 2)
    smallest = min(one.recipe.share for one in honest.search())
    assert min(one.recipe.share for one in lucky.search()) >= smallest - 0.11
