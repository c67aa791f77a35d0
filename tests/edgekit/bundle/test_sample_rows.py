"""Samples with their axis first, and the model's own layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.bundle.sample_rows import run_samples
from edgekit.tensors import Array, DType, TensorSpec


@pytest.mark.parametrize(
    ("shape", "calls"),
    [((None, 2, 3), 2), ((2, None, 3), 2), ((2, 3), 5), ((), 5)],
    ids=["first", "second", "none", "scalar"],
)
def test_samples_are_run_in_the_layout_of_the_model(shape: tuple[int | None, ...], calls: int) -> None:
    """A model with a batch gets several samples a call, along its batch axis; one without gets one sample a call."""
    x, y = TensorSpec("x", DType.FLOAT32, shape), TensorSpec("y", DType.FLOAT32, shape)
    rest = tuple(size for size in shape if size is not None)
    samples = np.random.default_rng(0).random((5, *rest), np.float32)
    seen: list[tuple[int, ...]] = []

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert x.fits(inputs["x"])
        seen.append(inputs["x"].shape)
        return {"y": 2 * inputs["x"]}

    answers = run_samples(run, [x, TensorSpec("left_out", DType.FLOAT32, ())], [y], {"x": samples}, rows=3)
    np.testing.assert_array_equal(answers["y"], 2 * samples)
    assert len(seen) == calls
