"""The test in the field that refutes a certificate."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.certificate.refutation import Explored, evidence, refuted

ERROR = 0.01


def first_refutation(rate: float, bound: float, answers: int, rng: np.random.Generator) -> int | None:
    """After how many explored answers the bound is refuted, where `rate` of them differ; None for never."""
    differing = np.cumsum(rng.random(answers) < rate)
    step = np.flatnonzero(np.diff(differing, prepend=0))  # the evidence rises only when an answer differs
    for at in step:
        if refuted(Explored(int(at) + 1, int(differing[at])), bound, ERROR):
            return int(at) + 1
    return None


@pytest.mark.parametrize("bound", [0.005, 0.05, 0.2])
def test_a_true_bound_is_refuted_in_at_most_1_percent_of_devices_however_long_they_look(bound: float) -> None:
    """The rate is exactly the bound, and the test looks after each of 2,000 answers."""
    rng = np.random.default_rng(8)
    wrong = sum(first_refutation(bound, bound, 2000, rng) is not None for _ in range(200))
    assert wrong <= 0.01 * 200 + 3 * np.sqrt(0.01 * 0.99 * 200)


def test_a_shift_is_refuted_after_tens_of_explored_answers() -> None:
    """A bound of 5 % and a true rate of 20 %: half of the devices refute it within 80 answers, most within 200."""
    rng = np.random.default_rng(9)
    found = [first_refutation(0.2, 0.05, 1000, rng) for _ in range(300)]
    needed = np.array([1000 if one is None else one for one in found])
    assert np.median(needed) <= 80
    assert np.quantile(needed, 0.95) <= 200


def test_bounds_that_say_nothing_are_never_refuted() -> None:
    """A bound of 1 holds always; without answers there is no evidence."""
    assert evidence(Explored(100, 100), 1.0) == 0.0
    assert evidence(Explored(), 0.05) == 0.0
    assert not refuted(Explored(5, 0), 0.05, ERROR)
