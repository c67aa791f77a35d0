"""The monitor of one bundle: subjects, words, and what is kept across restarts."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.drift.monitor import Monitor, Stored
from edgekit.drift.reference import Reference, bounded, summarise

RNG = np.random.default_rng(0)


def reference() -> Reference:
    """Two statistics of one input, a score and a class, of 400 samples."""
    names = ("score", "class", "input.x.mean", "input.x.spread")
    values = [RNG.random(400), RNG.integers(10, size=400).astype(float), RNG.random(400), RNG.random(400)]
    ties = RNG.integers(65_536, size=400).tolist()
    return bounded([summarise(name, found.tolist(), ties) for name, found in zip(names, values, strict=True)])


def good() -> dict[str, float]:
    names = ("score", "input.x.mean", "input.x.spread", "unknown")
    return {name: RNG.random() for name in names} | {"class": float(RNG.integers(10))}


def test_one_subject_is_told_once_and_ends_once() -> None:
    """Two statistics of one input differ: one drift, with the first one, in words without values of the data."""
    monitor, told = Monitor("d" * 64, reference(), 0.001), []
    for step in range(500):
        values = good()
        if step < 60:
            values |= {"input.x.mean": 7.25, "input.x.spread": 7.25}
        told += monitor.add(values, RNG.random)
    assert [(drift.subject, drift.differs) for drift in told] == [("input.x", True), ("input.x", False)]
    assert told[0].statistic in ("input.x.mean", "input.x.spread")
    assert "samples lie above a value above which 1% of the calibration data lie" in told[0].message
    assert "7.2" not in told[0].message
    assert (told[0].moved > 0.9, told[0].samples < 20, monitor.open, monitor.samples) == (True, True, {}, 500)


def test_a_new_mix_of_classes_is_told() -> None:
    """One class of ten is all that comes."""
    monitor, told = Monitor("d" * 64, reference(), 0.001), []
    for _ in range(60):
        told += monitor.add(good() | {"class": 3.0}, RNG.random)
    assert [(drift.subject, drift.differs) for drift in told] == [("class", True)]


def test_a_monitor_goes_on_after_a_restart() -> None:
    """What differs is still known, through JSON and back."""
    made = reference()
    monitor = Monitor("d" * 64, made, 0.001)
    for _ in range(40):
        monitor.add(good() | {"score": -1.0}, RNG.random)
    stored = msgspec.json.decode(msgspec.json.encode(monitor.stored()), type=Stored)
    other = Monitor("d" * 64, made, 0.001)
    assert other.resume(stored)
    assert (other.open, other.samples) == (monitor.open, 40)
    assert list(other.open) == ["score"]
    ends = [drift for _ in range(300) for drift in other.add(good(), RNG.random)]
    assert [(drift.subject, drift.differs) for drift in ends] == [("score", False)]


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "e" * 64},
        {"statistics": ("score",)},
        {"counts": []},
        {"counts": [[[2**60] * 9] * 3] * 4},
        {"counts": [[[-1] * 9] * 3] * 4},
        {"numbers": [[0] * 3] * 4},
        {"numbers": [[2**60] * 3] * 4},
        {"numbers": [[2**70] * 3] * 4},
        {"raised": [3] * 4},
        {"raised": [-2] * 4},
        {"samples": -1},
    ],
)
def test_what_cannot_be_true_is_not_resumed(change: dict[str, object]) -> None:
    """Another bundle, or a damaged file: the test begins anew."""
    monitor = Monitor("d" * 64, reference(), 0.001)
    assert not monitor.resume(msgspec.structs.replace(monitor.stored(), **change))
    assert monitor.stored().numbers == [[1] * 3] * 4
