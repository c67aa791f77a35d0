"""The committed fit of instructions is that of the committed counts, and its errors are those that it states."""

import numpy as np
import pytest

from benchmarks.cost_fit import CORES, Fitter, load
from converters.cost.file_estimate import fit_of, instructions
from edgekit.runtimes import LITERT, ONNXRUNTIME


@pytest.fixture(scope="module")
def counts():
    return load()


def test_the_counts_are_of_enough_networks(counts):
    """At least 150 files of 25 networks, on every core that has a fit."""
    for core in CORES:
        files = [one for one in counts if core in one.totals and not one.network.startswith("micro-")]
        assert len(files) >= 150
        assert len({one.network for one in files}) >= 25


def test_the_fit_is_that_of_the_counts(counts):
    """Made again from the counts, the fit estimates the same."""
    fitter = Fitter(counts, ONNXRUNTIME, "cortex-a76")
    again, stored = fitter.fit(), fit_of(ONNXRUNTIME, "cortex-a76")
    assert stored is not None
    for one in fitter.files[:20]:
        assert instructions(again, one.operations) == pytest.approx(instructions(stored, one.operations), rel=1e-3)


@pytest.mark.soak
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("runtime", [LITERT, ONNXRUNTIME])
def test_the_errors_are_those_of_networks_that_were_left_out(counts, runtime, core):
    """The stated median and worst error, with all files of a network left out of the fit."""
    stored = fit_of(runtime, core)
    assert stored is not None
    errors = np.abs(list(Fitter(counts, runtime, core).errors().values()))
    assert np.median(errors) == pytest.approx(stored.median, abs=0.002)
    assert errors.max() == pytest.approx(stored.worst, abs=0.02)
