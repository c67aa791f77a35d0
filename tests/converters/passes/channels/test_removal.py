"""Removal of any channels: for every structure, the smaller graph is the graph with masked channels."""

import numpy as np
import onnx
import pytest

from converters.graph.graph import Graph
from converters.passes.channels.groups import without
from converters.passes.channels.rules import channels_of
from tests.simulators.models import model_of
from tests.simulators.pruning_models import HEADS, STRUCTURES, WIDTH, WORDS, Words, masked


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
    for name in ("attention", "joined attention", "flat attention", "words first"):
        net, output = STRUCTURES[name]()
        channels = channels_of(net.graph(output))
        free = [root for root in np.unique(channels.roots) if root not in channels.frozen()]
        assert [int((channels.roots == root).sum()) for root in free] == [3 * WIDTH // HEADS] * HEADS, name


def test_shared_keys_go_with_all_heads_that_use_them():
    """Two heads of queries and their keys and values are one group."""
    net, output = STRUCTURES["shared keys"]()
    channels = channels_of(net.graph(output))
    free = [root for root in np.unique(channels.roots) if root not in channels.frozen()]
    assert [int((channels.roots == root).sum()) for root in free] == [4 * WIDTH // HEADS] * (HEADS // 2)


@pytest.mark.parametrize("used", ["factor", "other tensor", "other axis", "answer"])
def test_numbers_of_channels_that_are_used_otherwise_hold_them(used):
    """Where a graph computes with the number of channels, or shapes other tensors by it, they stay, with a reason."""
    net = Words()
    x = net.dense("x", WIDTH, 12)
    size = net.op("Gather", net.op("Shape", x), net.constant([2], np.int64), axis=0)
    shape = net.op("Concat", net.constant([-1, WORDS], np.int64), size, axis=0)
    outputs = [net.dense(net.op("Reshape", x, shape), 12, 5)]
    if used == "factor":
        outputs[0] = net.op("Mul", outputs[0], net.op("Cast", size, to=onnx.TensorProto.FLOAT))
    elif used == "other tensor":
        outputs.append(net.op("Reshape", net.op("Concat", "x", "x", "x", axis=2), shape))
    elif used == "other axis":
        turned = net.op("Concat", net.constant([-1], np.int64), size, net.constant([WORDS], np.int64), axis=0)
        outputs.append(net.op("ReduceMean", net.op("Reshape", x, turned), axes=[1, 2], keepdims=0))
    else:
        outputs.append(net.op("Cast", shape, to=onnx.TensorProto.FLOAT))
    shapes = Graph(model_of(net.nodes, net.inputs, {}, net.weights)).shapes
    declared = {name: [None if size is None else size for size in shapes[name]] for name in outputs}
    channels = channels_of(Graph(model_of(net.nodes, net.inputs, declared, net.weights)))
    first = next(iter(channels.made.values()))
    assert all(root in channels.frozen() for root in channels.roots[first])


def test_what_is_not_understood_says_why():
    """The residual stream before a LayerNormalization stays, with a reason; the inner layers can shrink."""
    net, output = STRUCTURES["transformer"]()
    channels = channels_of(net.graph(output))
    reasons = set(channels.frozen().values())
    assert any("LayerNormalization" in reason for reason in reasons)
    assert any(reason == f"it reaches the output {output}" for reason in reasons)
