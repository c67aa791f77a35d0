"""The reference: sizes, ties, and documents that are refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.drift.reference import (
    LEVELS,
    MAX_REFERENCE_BYTES,
    MAX_STATISTICS,
    Reference,
    bounded,
    parse_reference,
    summarise,
)
from edgekit.errors import ManifestError


def statistic(name: str = "score", samples: int = 100):
    rng = np.random.default_rng(0)
    return summarise(name, rng.random(samples).round(6).tolist(), rng.integers(65_536, size=samples).tolist())


@pytest.mark.parametrize("samples", [100, 101, 357, 1000, 4096])
def test_the_weights_are_those_of_the_levels(samples: int) -> None:
    """They add up to n + 1, none is 0, and a bucket holds as many samples as its weight, less one at most."""
    rng = np.random.default_rng(samples)
    values, ties = rng.integers(5, size=samples).tolist(), rng.integers(65_536, size=samples).tolist()
    one = summarise("class", [float(value) for value in values], ties)
    assert sum(one.weights) == samples + 1
    assert min(one.weights) >= 1
    found = np.bincount([one.bucket(value, tie) for value, tie in zip(values, ties, strict=True)], minlength=9)
    assert np.abs(found - np.array(one.weights)).max() <= 1, "equal values are divided by their ties"
    assert np.cumsum(one.weights)[:-1] / (samples + 1) == pytest.approx(LEVELS, abs=0.005)


def test_a_reference_stays_within_its_size() -> None:
    """The last statistics are left out; what is kept can be read back, byte for byte."""
    many = bounded([statistic(f"input.{'x' * 60}.feature.{i}") for i in range(60)])
    assert 10 < len(many.statistics) <= MAX_STATISTICS
    data = many.canonical_bytes()
    assert len(data) <= MAX_REFERENCE_BYTES
    assert parse_reference(data) == many


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"samples": 99}, "of 99 samples"),
        ({"ranks": (1, 5, 20, 40, 60, 80, 95, 200)}, "do not rise"),
        ({"ranks": (1, 5, 20, 40, 60, 80, 95)}, "7 ranks"),
        ({"edges": ((0.5, 0),) * 7 + ((0.1, 0),)}, "do not rise"),
        ({"edges": ((0.5, 70_000),) * 8}, "out of range"),
        ({"bounds": (2.0, 1.0)}, "do not rise"),
        ({"name": "a\nb"}, "can be printed"),
        ({"name": ""}, "0 characters"),
    ],
)
def test_a_reference_that_cannot_be_true_is_refused(change: dict[str, object], fault: str) -> None:
    """Each fault is named."""
    data = Reference((msgspec.structs.replace(statistic(), **change),)).canonical_bytes()
    with pytest.raises(ManifestError, match=fault):
        parse_reference(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"\xff", b'{"statistics":[]}', b" " * 9000, b'{"format":2,"statistics":[]}', b'{"statistics":1}'],
)
def test_other_documents_are_refused(data: bytes) -> None:
    """With ManifestError and nothing else."""
    with pytest.raises(ManifestError):
        parse_reference(data)


def test_a_statistic_is_named_once() -> None:
    """Two of one name would share windows."""
    with pytest.raises(ManifestError, match="named twice"):
        parse_reference(Reference((statistic(), statistic())).canonical_bytes())
