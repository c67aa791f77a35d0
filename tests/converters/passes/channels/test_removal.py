"""Removal of any channels: for every structure, the smaller graph is the graph with masked channels."""

import numpy as np
import onnx
import pytest

from converters.passes.channels.groups import without
from converters.passes.channels.rules import channels_of
from tests.simulators.pruning_models import HEADS, STRUCTURES, WIDTH, masked


def chosen(channels, seed, share=0.4):
    """Random groups of channels that can be removed (n,), bool."""
    roots, frozen = channels.roots, channels.frozen()
    free = np.array([root for root in np.unique(roots) if root not in frozen])
    picked = np.random.default_rng(seed).choice(free, max(1, int(share * len(free))), replace=False)
    return channels.kept_alive(np.isin(roots, picked))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", STRUCTURES)
def test_pruned_graph_is_the_masked_graph(name, seed):
    """Whatever channels are removed, the answers are those of the graph whose readers read 0 from them."""
    net, output = STRUCTURES[name]()
    channels = channels_of(net.graph(output))
    removed = chosen(channels, seed)
    assert removed.any()
    small, x = without(channels, removed), net.x(9)
    onnx.checker.check_model(small.model, full_check=True)
    expected, answers = masked(channels, removed).run({"x": x})[output], small.run({"x": x})[output]
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    one = small.with_batch(1).run({"x": x})[output]
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", STRUCTURES)
def test_removed_channels_are_gone_from_every_constant(name):
    """Each constant loses exactly the channels that were removed, on every axis that has them."""
    net, output = STRUCTURES[name]()
    channels = channels_of(net.graph(output))
    removed = chosen(channels, 7)
    small = without(channels, removed)
    nodes = {node.output[0]: node for node in small.nodes}
    shrunk = 0
    for cut in channels.cuts:
        old = channels.graph.nodes[cut.node]
        shape = small.constants[nodes[old.output[0]].input[cut.input_index]].shape
        assert shape[cut.axis] == (~removed[cut.ids]).sum()
        shrunk += int(removed[cut.ids].sum())
    assert shrunk
    assert small.parameters < channels.graph.parameters


def test_heads_go_whole():
    """The channels of one attention head are one group, in the layers of queries, keys and values together."""
    for name in ("attention", "joined attention", "flat attention"):
        net, output = STRUCTURES[name]()
        channels = channels_of(net.graph(output))
        free = [root for root in np.unique(channels.roots) if root not in channels.frozen()]
        assert [int((channels.roots == root).sum()) for root in free] == [3 * WIDTH // HEADS] * HEADS, name


def test_what_is_not_understood_says_why():
    """The residual stream before a LayerNormalization stays, with a reason; the inner layers can shrink."""
    net, output = STRUCTURES["transformer"]()
    channels = channels_of(net.graph(output))
    reasons = set(channels.frozen().values())
    assert any("LayerNormalization" in reason for reason in reasons)
    assert any(reason == f"it reaches the output {output}" for reason in reasons)
