import pytest

from benchmarks.cost_fit import CORES
from converters.cost.file_estimate import Fit, Kind, fit_of, instructions
from converters.cost.operations.operation import Operation, product_terms
from edgekit.bundle.recipe import Recipe
from edgekit.runtimes import LITERT, ONNXRUNTIME


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("runtime", [LITERT, ONNXRUNTIME])
def test_every_core_has_a_fit_of_both_runtimes(runtime, core):
    """More work costs more, and int8 with dot products costs less than float."""
    fit = fit_of(runtime, core)
    assert fit is not None
    assert fit.networks >= 24
    small, large = (Operation(next(k for k in fit.kinds if "*" in k), 16, n, 32) for n in (16, 64))
    assert 0 < instructions(fit, [small]) < instructions(fit, [large])
    assert 0 < fit.error(Recipe("int8")) < 0.25


def test_dot_products_show():
    """An int8 convolution costs a Cortex-A76 less than half of what it costs a Cortex-A72."""
    convolution = [Operation("conv int8*int8", 256, 32, 32, 9)]
    old, new = (fit_of(LITERT, core) for core in ("cortex-a72", "cortex-a76"))
    assert old is not None
    assert new is not None
    assert instructions(new, convolution) < 0.5 * instructions(old, convolution)


def test_blocks_are_filled():
    """A kernel computes whole blocks: 9 columns cost what 16 do in blocks of 8, but for what is written."""
    fit = Fit(0.0, {"conv a*b": Kind((0.0, 0.0, 0.0, 1.0) + (0.0,) * 8, (4, 8, 1))}, (1.0, 1.0, 1.0))
    nine, sixteen = (instructions(fit, [Operation("conv a*b", 4, n, 10)]) for n in (9, 16))
    assert nine == sixteen == 2 * 10
    assert product_terms(Operation("conv a*b", 4, 9, 10, 9), (4, 8, 1))[4] == 2 * 9


def test_kinds_that_were_never_counted_are_taken_for_the_nearest():
    """The same operator with other types, or the fallback of operators without products."""
    fit = Fit(5.0, {"conv a*b": Kind((7.0,) + (0.0,) * 11)}, (1.0, 2.0, 3.0))
    assert instructions(fit, [Operation("conv c*d", 1, 1, 1)]) == 12.0
    assert instructions(fit, [Operation("NEVER_SEEN float", 1, 10, 20)]) == 5.0 + 1.0 + 20.0 + 60.0


def test_work_that_is_done_once_does_not_grow_with_the_steps():
    """A recurrent operator arranges its weights once, and each step has work of its own."""
    once = Fit(0.0, {"GRU a*b": Kind((0.0,) * 10 + (50.0, 1.0))}, (1.0, 1.0, 1.0))
    steps = Fit(0.0, {"GRU a*b": Kind((1.0, 0.0, 2.0, 3.0) + (0.0,) * 8)}, (1.0, 1.0, 1.0))
    few, many = (Operation("GRU a*b", 1, 6, 4, 5, steps) for steps in (2, 20))
    assert instructions(once, [few]) == instructions(once, [many]) == 50.0 + 6 * (4 + 5)
    assert instructions(steps, [many]) == 10 * instructions(steps, [few]) == 20 * (1 + 2 * 6 * 4 + 3 * 6 * 5)
