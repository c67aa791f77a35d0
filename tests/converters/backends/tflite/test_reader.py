"""Matching of .tflite operators with canonical layers."""

import numpy as np
import pytest

from converters.backends.tflite.reader import WeightedOp, match_layers, parse_tflite, unchanged
from edgekit.errors import ConversionError
from tests.simulators import dense_models


@pytest.fixture
def layers():
    """An autoencoder, and its weights in TensorFlow Lite's order: one row per output."""
    graph = dense_models.autoencoder()
    return graph, {f"dense{i}": np.ascontiguousarray(graph.constants[f"w{i}"].T) for i in range(5)}


def ops_of(weights):
    return [WeightedOp("FULLY_CONNECTED", f"{name};", "float32", value.tobytes()) for name, value in weights.items()]


def test_order_does_not_matter(layers):
    """Converters reorder branches, so layers are matched by their weights."""
    graph, weights = layers
    names = list(weights)[::-1]
    assert match_layers(graph, ops_of({name: weights[name] for name in names})) == {n: i for i, n in enumerate(names)}


@pytest.mark.parametrize("axis", [0, 1])
def test_layers_into_which_a_factor_was_multiplied_are_found(axis, layers):
    """Weights that differ by one factor per input or per output are matched, as behind a normalization."""
    graph, weights = layers
    factors = np.random.default_rng(1).uniform(0.5, 2, weights["dense1"].shape[axis]).astype(np.float32)
    weights["dense1"] = weights["dense1"] * np.expand_dims(factors, 1 - axis)
    ops = ops_of(weights)
    places = match_layers(graph, ops)
    assert places == {name: index for index, name in enumerate(weights)}
    assert unchanged(graph, ops, places) == {"dense0", "dense2", "dense3", "dense4"}


def test_layers_that_were_changed_otherwise_are_not_taken_for_another(layers):
    """Other weights of equal size give no match."""
    graph, weights = layers
    weights["dense1"] = np.random.default_rng(2).normal(0, 1, weights["dense1"].shape).astype(np.float32)
    assert "dense1" not in match_layers(graph, ops_of(weights))
    assert len(match_layers(graph, ops_of(weights))) == 4


def test_what_is_no_file_is_named():
    """A file with other first bytes is refused."""
    with pytest.raises(ConversionError, match=r"expected a \.tflite"):
        parse_tflite(b"something else")
