"""The bounds of the statistics of inputs, and the share of ordinary samples outside of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.drift.outliers import SHARE, bounds_of, bounds_rank, outlying, samples_for_bounds, with_bounds
from edgekit.drift.reference import Reference, parse_reference, summarise


def reference(values: dict[str, list[float]]) -> Reference:
    """A reference with bounds, written and read."""
    statistics = [summarise(name, found, list(range(len(found)))) for name, found in values.items()]
    return parse_reference(Reference(tuple(with_bounds(statistics, values))).canonical_bytes())


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: rng.normal(0.0, 2.0, shape),
        lambda rng, shape: rng.standard_cauchy(shape),
        lambda rng, shape: rng.integers(3, size=shape).astype(float),
    ],
    ids=["normal", "heavy-tailed", "three-values"],
)
@pytest.mark.parametrize("samples", [700, 1500])
def test_few_samples_like_the_data_are_outside(
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], samples: int
) -> None:
    """At most SHARE of them, over many draws of the data, whatever the distribution is."""
    rng, outside, names = np.random.default_rng(samples), 0, [f"input.x.feature.{i}" for i in range(3)]
    for _ in range(60):
        data, new = draw(rng, (samples, 3)), draw(rng, (200, 3))
        bounds = bounds_of(reference({name: data[:, i].tolist() for i, name in enumerate(names)}))
        assert sorted(bounds) == names
        outside += sum(bool(outlying(bounds, dict(zip(names, row.tolist(), strict=True)))) for row in new)
    assert outside / (60 * 200) <= SHARE


def test_a_sample_that_is_far_outside_names_its_statistic() -> None:
    """On either side, and where the value is no number; values without bounds do not count."""
    values = {
        "input.x.mean": np.linspace(10.0, 20.0, 500).tolist(),
        "input.x.spread": np.linspace(1.0, 2.0, 500).tolist(),
    }
    bounds = bounds_of(reference(values | {"score": [0.5] * 500}))
    assert sorted(bounds) == ["input.x.mean", "input.x.spread"]
    assert outlying(bounds, {"input.x.mean": 15.0, "input.x.spread": 1.5, "score": 7.0}) == ""
    assert outlying(bounds, {"input.x.mean": 15.0, "input.x.spread": 0.0}) == "input.x.spread"
    assert outlying(bounds, {"input.x.mean": 1e30}) == "input.x.mean"
    assert outlying(bounds, {"input.x.mean": float("nan")}) == "input.x.mean"
    assert outlying(bounds, {}) == ""


def test_too_few_samples_and_statistics_by_chance_have_no_bounds() -> None:
    """200 samples for each statistic are needed. An element by chance says nothing of its sample."""
    assert [bounds_rank(199, 1), bounds_rank(198, 1), bounds_rank(399, 2), bounds_rank(4096, 5)] == [1, 0, 1, 4]
    found = reference({"input.ids.element": [1.0] * 300, "input.ids.zeros": [0.5] * 300})
    assert bounds_of(found) == {"input.ids.zeros": (0.5, 0.5)}
    few = reference({"input.x.mean": [0.0] * 150, "input.x.spread": [0.0] * 150, "score": [0.0] * 150})
    assert (bounds_of(few), samples_for_bounds(few)) == ({}, 399)
    assert samples_for_bounds(reference({"score": [0.0] * 150})) == 0
