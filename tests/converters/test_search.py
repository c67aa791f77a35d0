import pytest

from converters.quality import Drop
from converters.search import Budget, Measured, choose
from edgekit.errors import RefusedError
from edgekit.manifest import Cost
from edgekit.recipe import Recipe


def measured(precision, size, cost, *, same=False, drop=(0.0, 0.005), choice=0.0, fault=""):
    bound = Drop(drop[0], -1.0, drop[1], 300, "clopper-pearson") if drop else None
    return Measured(
        Recipe(precision), size, Cost("estimate", cost, "macs"), same, choice if drop else None, bound, fault
    )


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
    """Too wide a bound: the smaller of two equally cheap floats is taken, and the reason names the samples needed."""
    choice = pick(F32, F16, measured("int8", 100, 50, drop=(0.0, 0.03)), max_drop=0.001)
    assert (choice.chosen, choice.proven) == ("float16", True)
    verdict, reason = choice.verdicts["int8"]
    assert verdict == "unproven"
    assert "2995" in reason


def test_accept_unproven_takes_the_point_estimate_and_marks_it():
    """The same candidate is taken when asked for, and is not called proven."""
    choice = pick(F32, measured("int8", 100, 50, drop=(0.0, 0.03)), accept=True)
    assert (choice.chosen, choice.proven) == ("int8", False)


def test_slower_candidate_is_never_taken_for_speed():
    """An int8 that costs more than float loses under --aim cost and wins under --aim size."""
    slow = measured("int8", 100, 150)
    assert pick(F32, slow).chosen == "float32"
    assert pick(F32, slow, aim="size").chosen == "int8"


def test_only_one_candidate_is_taken_to_the_proof():
    """A second try on the same samples would need a stricter bound, so it is not made."""
    choice = pick(F32, measured("float16", 200, 60), measured("int8", 100, 50, drop=(0.0, 0.03)))
    assert choice.chosen == "float32"
    assert choice.verdicts["float16"][0] == "unproven"


def test_limits_refuse_what_is_too_large():
    """--max-bytes leaves only the small one."""
    choice = pick(F32, F16, max_bytes=300)
    assert choice.chosen == "float16"
    assert "400 bytes, allowed are 300" in choice.verdicts["float32"][1]


def test_nothing_within_budget_names_the_nearest():
    """The refusal says which came nearest and why the others did not."""
    with pytest.raises(RefusedError, match="nearest is int8") as caught:
        pick(measured("int8", 400, 100, drop=(0.0, 0.03)), measured("float16", 200, 60, drop=(0.3, 0.4), choice=0.3))
    assert "float16" in str(caught.value)
    assert caught.value.exit_code == 3


def test_candidate_that_could_not_be_made_is_a_verdict():
    """A backend's failure on one candidate leaves the others."""
    choice = pick(F32, measured("int8", 0, 50, fault="the quantizer failed"))
    assert choice.chosen == "float32"
    assert choice.verdicts["int8"] == ("failed", "the quantizer failed")


def test_without_data_nothing_is_called_proven():
    """Parity on random inputs lets a float candidate through, but proves nothing of quality."""
    choice = pick(measured("float32", 400, 100, same=True, drop=None))
    assert (choice.chosen, choice.proven) == ("float32", False)
