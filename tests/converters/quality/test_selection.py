import msgspec
import numpy as np
import pytest

from converters.quality.confidence import paired_drop
from converters.quality.measured import Budget, Measured
from converters.quality.order import sequence
from converters.quality.selection import choose, choose_by_counts, finalists
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import Recipe
from edgekit.errors import RefusedError
from tests.simulators.drops import bound, judgement, output_drop


def measured(
    precision, size, cost, *, same=False, drop=(0.0, 0.005), choice=0.0, fault="", divergence=None, error=0.0, **more
):
    return Measured(
        Recipe(precision),
        size,
        Cost("estimate", cost, "macs"),
        same,
        judgement(choice, bound(*drop), **more) if drop else None,
        fault,
        divergence=DIVERGENCE[precision] if divergence is None else divergence,
        cost_error=error,
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


def test_where_no_candidate_could_be_made_the_reasons_are_told_and_not_the_budget():
    """Raising --max-drop helps nothing then; equal reasons are told once."""
    failed = [measured(kind, 0, 0, fault="operator 3, ERF, is not supported") for kind in ("float16", "int8")]
    with pytest.raises(RefusedError, match=r"no candidate could be made: float16; int8: operator 3, ERF") as caught:
        pick(*failed)
    assert "--max-drop" not in caught.value.advice
    assert "edgekit targets" in caught.value.advice


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
            found.append(
                Measured(recipes[place], 390 - place, cost, False, judgement(lost, drop), divergence=float(place))
            )
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


def test_a_refusal_has_the_names_that_people_read_with_the_ids_in_brackets():
    """The nearest and all others, also inside of reasons, where the id is left out."""
    near = measured("int8-dynamic", 400, 100, drop=(0.0, 0.03))
    far = msgspec.structs.replace(measured("int8", 500, 120, drop=(0.3, 0.4)), recipe=Recipe("int8", equalize=True))
    with pytest.raises(RefusedError) as caught:
        pick(near, far)
    first, second = str(caught.value).splitlines()
    assert first.startswith("no candidate meets the budget; nearest is int8 dynamic [int8-dynamic]: drop of")
    assert second.startswith('  int8, channels equalized [int8-equalized]: "int8 dynamic" costs no more')


def test_nearest_to_a_limit_of_size_is_the_smallest():
    """The smallest is nearest, whatever its drop, and the advice names the limit that all exceed."""
    with pytest.raises(RefusedError, match="nearest is int8: 200 bytes, the limit is 100") as caught:
        pick(measured("float16", 300, 60, drop=(0.0, 0.01)), measured("int8", 200, 90, drop=(0.1, 0.2)), max_bytes=100)
    assert caught.value.advice == "Raise --max-bytes."


def test_candidate_that_could_not_be_made_is_a_verdict():
    """A fault of one candidate does not affect the others."""
    choice = pick(F32, measured("int8", 0, 50, fault="the quantizer failed"))
    assert choice.chosen == "float32"
    assert choice.verdicts["int8"] == ("failed", "the quantizer failed")


def test_without_data_nothing_is_called_proven():
    """Parity on random inputs accepts a float candidate but proves no quality."""
    choice = pick(measured("float32", 400, 100, same=True, drop=None))
    assert (choice.chosen, choice.proven) == ("float32", False)


def test_an_output_beyond_its_limit_refuses_a_candidate_whose_decisions_are_right():
    """The decision output is within the budget, and the boxes are not: on the choice split, or in their bound."""
    far = output_drop("boxes", 0.94, bound(0.94, 0.95), "agreement")
    choice = pick(F32, measured("int8", 100, 50, others=[far]))
    assert choice.chosen == "float32"
    assert choice.verdicts["int8"] == ("refused", "output boxes: drop of 0.94 on the choice split, the limit is 0.01")
    near = output_drop("boxes", 0.009, bound(0.009, 0.02, method="betting"), "agreement")
    verdict, reason = pick(F32, measured("int8", 100, 50, others=[near])).verdicts["int8"]
    assert verdict == "unproven"
    assert reason.startswith("output boxes: drop of 0.009 on 300 samples may be as much as 0.02 at 95%")


def test_each_output_has_a_limit_of_its_own():
    """--max-drop boxes=0.05 lets the boxes lose more; another unit of the decision metric does not pass to them."""
    boxes = output_drop("boxes", 0.03, bound(0.03, 0.04), "agreement")
    assert pick(F32, measured("int8", 100, 50, others=[boxes]), max_drops={"boxes": 0.05}).chosen == "int8"
    errors = judgement(0.5, bound(0.5, 0.9), [boxes])
    errors = msgspec.structs.replace(
        errors, outputs=(msgspec.structs.replace(errors.outputs[0], metric="mae"), *errors.outputs[1:])
    )
    assert [limit for _, limit in Budget(max_drop=1.0).limits(errors)] == [1.0, 0.01]


def test_a_measured_drop_beyond_the_budget_wins_over_the_same_answers():
    """A float artifact within the tolerance whose measured drop is 0.046 is refused like any other."""
    coarse = measured("float16", 200, 100, same=True, drop=(0.046, 0.05), choice=0.046)
    choice = pick(F32, coarse)
    assert choice.chosen == "float32"
    assert choice.verdicts["float16"] == ("refused", "drop of 0.046 on the choice split, the limit is 0.01")


def test_a_class_beyond_its_limit_is_named():
    """With max_drop_any_class, the hardest class decides, and one with too few samples says how many would do."""
    found = measured("int8", 100, 50, hardest=("class 7", bound(0.3, 0.6, n=12)))
    assert pick(F32, found).chosen == "int8"
    choice = pick(F32, found, max_drop_any_class=0.05)
    assert choice.chosen == "float32"
    reason = choice.verdicts["int8"][1]
    assert reason.startswith("class 7: drop of 0.3 on 12 samples may be as much as 0.6 at 95%, the limit is 0.05")
    assert "at least 59 proof samples of it (99 in --data) could prove it" in reason
    unseen = measured("int8", 100, 50, hardest=("class 9", bound(0.0, float("inf"), n=0, method="none")))
    reason = pick(F32, unseen, max_drop_any_class=0.05).verdicts["int8"][1]
    assert reason == "class 9: no proof samples; 59 could prove a drop of at most 0.05"


def test_costs_that_the_estimate_cannot_tell_apart_are_equal_and_the_smallest_wins():
    """Within the estimate's error of the cheapest, bytes decide; beyond it, the cost does."""
    cheap, close = measured("int8", 300, 1_437_200, error=0.04), measured("int8-weights", 100, 1_457_505, error=0.02)
    float32 = measured("float32", 400, 3_000_000, same=True)
    choice = pick(float32, cheap, close)
    assert choice.chosen == "int8-weights"
    assert "median error of 4%, cannot tell its cost from that of int8" in choice.verdicts["int8-weights"][1]
    far = measured("int8-weights", 100, 1_600_000, error=0.02)
    assert pick(float32, cheap, far).chosen == "int8"
    unknown = measured("int8", 300, 100), measured("int8-weights", 100, 101)
    assert pick(*unknown).chosen == "int8"


def counted(one, value):
    """The candidate with a counted cost."""
    return msgspec.structs.replace(one, cost=Cost("instructions", value, "macs"), cost_error=0.001)


def test_counts_choose_among_the_last_candidates():
    """The candidate that the estimate took for a little dearer is the cheapest by its count, and is proven too."""
    first, second = measured("int8", 100, 10.0), measured("int8-dynamic", 120, 11.0)
    far = measured("float32", 400, 40.0, same=True)
    budget = Budget(0.01)
    choice = choose([first, second, far], budget, aim="cost", accept_unproven=False)
    assert choice.chosen == "int8"
    ids = finalists([first, second, far], choice, aim="cost", count=3)
    assert ids[0] == "int8"
    again = choose_by_counts(
        [counted(one, cost) for one, cost in ((first, 12.0), (far, 9.0))], choice, budget, aim="cost"
    )
    assert again.chosen == "float32"
    assert again.verdicts["float32"][1].startswith("the cheapest that fits, by counted instructions of 2 candidates; ")
    assert again.verdicts["int8"][0] == "fits"
    same = choose_by_counts([counted(first, 8.0), counted(far, 9.0)], choice, budget, aim="cost")
    assert (same.chosen, same.proven) == ("int8", True)


def test_a_count_beyond_the_limit_is_refused():
    """--max-cost holds for what was counted; where nothing is left, the message names the count."""
    first, far = measured("int8", 100, 10.0), measured("float32", 400, 14.0, same=True)
    budget = Budget(0.01, max_cost=15.0)
    choice = choose([first, far], budget, aim="cost", accept_unproven=False)
    again = choose_by_counts([counted(first, 16.0), counted(far, 14.5)], choice, budget, aim="cost")
    assert again.chosen == "float32"
    assert again.verdicts["int8"] == ("refused", "cost 16 macs, the limit is 15")
    with pytest.raises(RefusedError, match="cost 16 macs, the limit is 15"):
        choose_by_counts([counted(first, 16.0)], choice, budget, aim="cost")


def test_lucky_pruned_candidate_is_not_accepted_by_its_estimate():
    """Without proof, a pruned candidate also has to fit by the drop that its divergence suggests; others need not."""

    def one(share, size, drop, divergence):
        kept = {"prune": "channels", "kept": (("layer", f"0-{share}"),)} if share else {}
        cost = Cost("estimate", 90, "macs")
        recipe = Recipe("int8", **kept) if share else Recipe("int8-weights")
        judged = judgement(drop, bound(drop, 0.5))
        return Measured(recipe, size, cost, False, judged, divergence=divergence)

    found = [one(9, 300, 0.004, 0.01), one(8, 280, 0.014, 0.03), one(7, 260, 0.026, 0.05), one(6, 250, 0.006, 0.045)]
    choice = pick(F32, *found, aim="size", accept=True)
    assert choice.chosen == found[0].recipe.id
    assert "its divergence suggests one of 0.01" in choice.verdicts[found[3].recipe.id][1]
    plain = one(0, 250, 0.006, 0.045)
    assert pick(F32, *found[:3], plain, aim="size", accept=True).chosen == plain.recipe.id


@pytest.mark.parametrize(("rows", "wanted"), [(24, "float32"), (3000, "int8")])
def test_few_samples_without_a_change_do_not_outweigh_a_large_divergence(rows, wanted):
    """Of 24 samples none changes in most candidates that lose 2 points; of 3,000 some would."""
    recipe = Recipe("int8", prune="channels", kept=(("layer", "0-9"),))
    judged = judgement(0.0, bound(0.0, 0.12, n=rows))
    pruned = Measured(recipe, 100, Cost("estimate", 90, "macs"), False, judged, divergence=0.06)
    choice = pick(F32, pruned, aim="size", accept=True)
    assert choice.chosen.startswith(wanted)
    assert ("with so few samples as 24, suggests one of 0.01" in choice.verdicts[recipe.id][1]) == (rows == 24)


def test_refused_candidate_dominates_nothing():
    """A candidate that another one dominates is judged by its own estimate once that other one is refused."""
    better = measured("int8", 100, 50, drop=(0.05, 0.2), divergence=1e-3)
    worse = measured("int8-dynamic", 110, 60, drop=(0.004, 0.2), divergence=2e-3)
    choice = pick(F32, better, worse, aim="size", accept=True)
    assert choice.chosen == "int8-dynamic"
    assert choice.verdicts["int8"][0] == "refused"
    assert pick(F32, better, worse, aim="size").chosen == "float32"
