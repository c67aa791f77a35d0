"""Cohorts select devices, and the order of devices in waves is the same everywhere."""

from edgekit.rollout.cohort import Cohort, Device, wave_order


def device(name="pi-1", target="raspberry-pi-4", **labels):
    return Device(name=name, target=target, public_key="", labels=labels)


def test_empty_cohort_selects_everybody():
    """A cohort without conditions is the whole fleet."""
    assert Cohort().selects(device(site="north"))


def test_cohort_needs_one_target_and_all_labels():
    """Targets are alternatives, labels are all required."""
    cohort = Cohort(targets=("raspberry-pi-4", "jetson-orin"), labels={"site": "north", "ring": "1"})
    assert cohort.selects(device(site="north", ring="1"))
    assert not cohort.selects(device(site="north"))
    assert not cohort.selects(device(target="x86-64", site="north", ring="1"))


def test_wave_order_is_stable_and_differs_between_rollouts():
    """The order does not depend on the input order, and another rollout has another first device."""
    names = [f"d-{i}" for i in range(40)]
    assert wave_order(1, names) == wave_order(1, reversed(names))
    assert len({wave_order(rollout, names)[0] for rollout in range(20)}) > 5
