"""Samples with their axis first, and the model's own layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.bundle.golden import run_golden
from edgekit.bundle.sample_rows import run_samples
from edgekit.tensors import Array, DType, TensorSpec
from tests.edgekit.bundle.test_manifest import sound


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


def test_golden_samples_of_a_model_without_a_batch_are_calls_of_their_own() -> None:
    """A first axis of 1 is the sample axis, whatever the other inputs are; a whole call is run as it is."""
    specs = [TensorSpec("x", DType.FLOAT32, (4, 3)), TensorSpec("h", DType.FLOAT32, (1, 1, 2))]

    class Sums:
        inputs, outputs, provider = tuple(specs), (TensorSpec("y", DType.FLOAT32, (1,)),), "sums"

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            assert all(spec.fits(inputs[spec.name]) for spec in specs)
            return {"y": np.array([inputs["x"].sum() + inputs["h"].sum()], np.float32)}

        def close(self) -> None: ...

    manifest = sound()
    x, h = np.ones((5, 4, 3), np.float32), np.ones((5, 1, 2), np.float32)
    assert run_golden(Sums(), manifest, {"x": x, "h": h})["y"].shape == (5,)
    assert run_golden(Sums(), manifest, {"x": x[0], "h": h[:1]})["y"].shape == (1,)
