"""The order of devices in waves is the same everywhere, and a cohort says whom it selects."""

from edgekit.rollout.cohort import Cohort, wave_order


def test_a_cohort_says_whom_it_selects():
    """As the options of the command, for messages."""
    assert Cohort().text == ""
    cohort = Cohort(targets=("pi",), labels={"site": "north"}, filter="online")
    assert cohort.text == "--target pi --label site=north --filter 'online'"


def test_wave_order_is_stable_and_differs_between_rollouts():
    """The order does not depend on the input order, and another rollout has another first device."""
    names = [f"d-{i}" for i in range(40)]
    assert wave_order(1, names) == wave_order(1, reversed(names))
    assert len({wave_order(rollout, names)[0] for rollout in range(20)}) > 5
