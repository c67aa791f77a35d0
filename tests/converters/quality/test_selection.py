import numpy as np
import pytest

from converters.quality.confidence import paired_drop
from converters.quality.drop import Drop
from converters.quality.selection import Budget, Measured, choose, sequence
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import Recipe
from edgekit.errors import RefusedError


def measured(precision, size, cost, *, same=False, drop=(0.0, 0.005), choice=0.0, fault="", divergence=None):
    bound = Drop(drop[0], -1.0, drop[1], 300, "clopper-pearson") if drop else None
    return Measured(
        Recipe(precision),
        size,
        Cost("estimate", cost, "macs"),
        same,
        choice if drop else None,
        bound,
        fault,
        divergence=DIVERGENCE[precision] if divergence is None else divergence,
    )


DIVERGENCE = {"float32": 0.0, "float16": 1e-6, "int8-weights": 1e-3, "int8-dynamic": 2e-3, "int8": 5e-3}
F32 = measured("float32", 400, 100, same=True)
F16 = measured("float16", 200, 100, same=True)


def pick(*found, aim="cost", accept=False, **budget):
    return choose(list(found), Budget(**budget), aim=aim, accept_unproven=accept)


def test_cheapest_proven_candidate_is_taken():
    """int8 with its bound within the budget wins by cost."""
    choice = pick(F32, F16, measured("int8", 100, 50))
    assert (choice.chosen, choice.proven) == ("int8", True)
    assert choice.verdicts["float32"][0] == "fits"


def test_unproven_int8_gives_way_to_float_and_says_what_it_lacks():
    """With a too wide bound, the smaller of two equally cheap floats is chosen; the reason has the needed samples."""
    choice = pick(F32, F16, measured("int8", 100, 50, drop=(0.0, 0.03)), max_drop=0.001)
    assert (choice.chosen, choice.proven) == ("float16", True)
    verdict, reason = choice.verdicts["int8"]
    assert verdict == "unproven"
    assert "2995" in reason


def test_accept_unproven_takes_the_point_estimate_and_marks_it():
    """With accept_unproven the same candidate is chosen and not marked as proven."""
    choice = pick(F32, measured("int8", 100, 50, drop=(0.0, 0.03)), accept=True)
    assert (choice.chosen, choice.proven) == ("int8", False)


def test_slower_candidate_is_never_taken_for_speed():
    """An int8 that costs more than float loses under --aim cost and wins under --aim size."""
    slow = measured("int8", 100, 150)
    assert pick(F32, slow).chosen == "float32"
    assert pick(F32, slow, aim="size").chosen == "int8"


def test_the_last_that_passes_before_the_first_failure_is_taken():
    """In the order of tests, int8-weights passes, int8-dynamic fails, and int8 is not tested."""
    found = [
        F32,
        measured("int8-weights", 200, 90, drop=(0.0, 0.008)),
        measured("int8-dynamic", 150, 60, drop=(0.004, 0.02)),
        measured("int8", 100, 50, drop=(0.0, 0.001)),
    ]
    choice = pick(*found)
    assert (choice.chosen, choice.proven) == ("int8-weights", True)
    assert [choice.verdicts[name][0] for name in ("int8-dynamic", "int8")] == ["unproven", "untested"]
    assert "ended at int8-dynamic" in choice.verdicts["int8"][1]


def test_the_order_of_trial_does_not_depend_on_the_proof():
    """The order of the tests does not depend on the proof split."""
    orders = set()
    for upper in (0.001, 0.5):
        found = [measured(name, size, size, drop=(0.0, upper)) for name, size in (("int8", 1), ("int8-weights", 3))]
        orders.add(tuple(m.recipe.id for m in sequence(found, "cost")[0]))
    assert orders == {("int8-weights", "int8")}


def test_what_is_worse_for_the_aim_and_further_off_stays_out_of_the_way():
    """A candidate that costs more and is further from float than another one is not tested."""
    risky = measured("int8-dynamic", 50, 60, divergence=0.1)
    choice = pick(F32, risky, measured("int8", 100, 50))
    assert choice.chosen == "int8"
    assert choice.verdicts["int8-dynamic"] == (
        "untested",
        "not tested: int8 costs less and is nearer to the float model",
    )


def test_dominated_candidates_are_named_by_what_is_better():
    """A candidate that is no better than another in cost, size and distance is never chosen."""
    choice = pick(F32, measured("int8-dynamic", 150, 60, divergence=0.1), measured("int8", 100, 50))
    verdict, reason = choice.verdicts["int8-dynamic"]
    assert verdict == "dominated"
    assert reason.startswith("int8 costs no more")


def test_accept_unproven_says_proven_where_the_sequence_showed_it():
    """The point estimate is used only where nothing was proven."""
    assert pick(F32, measured("int8", 100, 50), accept=True).proven


# A share of 5 % shows only in thousands of draws: about 10 s.
@pytest.mark.parametrize(("draws", "size", "spread"), [(4000, 800, 0.0), (1000, 2400, 0.01)])
def test_budget_that_is_broken_in_truth_is_certified_in_at_most_5_percent_of_draws(draws, size, spread):
    """Twelve candidates, each smaller and truly worse than the last, all but the first two beyond the budget.

    Paired outcomes; `spread` is the share of samples that change both ways besides. The candidates
    share samples and most of their losses, as those of one model do.
    """
    rng = np.random.default_rng(11)
    truth = np.concatenate([[0.0, 0.006], 0.0101 + 0.001 * np.arange(10)])
    recipes = [Recipe("int8", int4_layers=tuple(str(i) for i in range(place))) for place in range(len(truth))]
    broken = certified = 0
    for _ in range(draws):
        levels, noise = rng.random(size), rng.random(size)
        found = []
        for place, loss in enumerate(truth):
            level = (levels + 0.001 * place) % 1.0
            worse = (level < loss) | (noise < spread)
            better = ~worse & (noise > 1 - spread / (1 - loss))
            before, after = (~better).astype(float), (~worse).astype(float)
            choice, proof = slice(0, size // 4), slice(size // 4, size)
            drop = paired_drop(before[proof], after[proof], 0.95, method="betting" if spread else "")
            lost = float(np.mean(before[choice] - after[choice]))
            cost = Cost("estimate", 90, "macs")
            found.append(Measured(recipes[place], 390 - place, cost, False, lost, drop, divergence=float(place)))
            if drop.upper > 0.01:
                break  # what comes later in the order is not looked at
        taken = pick(F32, *found, aim="size").chosen
        if taken != "float32":
            certified += 1
            broken += truth[[recipe.id for recipe in recipes].index(taken)] > 0.01
    assert broken <= 0.05 * draws
    assert certified > 0.1 * draws  # where nothing is ever certified the bound is no news


def test_limits_refuse_what_is_too_large():
    """--max-bytes leaves only the small one."""
    choice = pick(F32, F16, max_bytes=300)
    assert choice.chosen == "float16"
    assert "400 bytes, the limit is 300" in choice.verdicts["float32"][1]


def test_nothing_within_budget_names_the_nearest():
    """The error names the nearest candidate and the reasons of the others."""
    with pytest.raises(RefusedError, match="nearest is int8") as caught:
        pick(measured("int8", 400, 100, drop=(0.0, 0.03)), measured("float16", 200, 60, drop=(0.3, 0.4), choice=0.3))
    assert "float16" in str(caught.value)
    assert caught.value.exit_code == 3


def test_candidate_that_could_not_be_made_is_a_verdict():
    """A fault of one candidate does not affect the others."""
    choice = pick(F32, measured("int8", 0, 50, fault="the quantizer failed"))
    assert choice.chosen == "float32"
    assert choice.verdicts["int8"] == ("failed", "the quantizer failed")


def test_without_data_nothing_is_called_proven():
    """Parity on random inputs accepts a float candidate but proves no quality."""
    choice = pick(measured("float32", 400, 100, same=True, drop=None))
    assert (choice.chosen, choice.proven) == ("float32", False)
