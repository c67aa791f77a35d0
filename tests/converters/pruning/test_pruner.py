"""Pruning of whole graphs: levels, refit, and what happens with every structure."""

import numpy as np
import onnx
import pytest

from converters.cost.estimate import estimate
from converters.data.samples import Samples
from converters.passes.channels.groups import without
from converters.passes.channels.rules import channels_of
from converters.passes.stepping import Stepper, chunks_of
from converters.pruning.families import removed_by_names
from converters.pruning.kept import numbers_of
from converters.pruning.pruner import ChannelPruner, parameters
from converters.pruning.refit import refit
from converters.quality.divergence import divergence
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import find_target, known_targets
from edgekit.errors import CalibrationError
from tests.simulators.channel_models import Net
from tests.simulators.pruning_models import STRUCTURES


def moved(graph, other, x):
    return divergence(graph.run({"x": x}), other.run({"x": x}), "")


@pytest.mark.parametrize("name", STRUCTURES)
def test_refit_makes_every_structure_better_on_new_rows(name):
    """The refitted graph is nearer to the original than the cut one, on rows that the fit did not see."""
    net, output = STRUCTURES[name]()
    graph = net.graph(output)
    pruner = ChannelPruner(graph, Samples({"x": net.x(80, seed=2)}))
    level = pruner.level(0.75, parameters, "size")
    assert 0.3 < level.left <= 0.76
    made = pruner.pruned(level.kept)
    channels = channels_of(graph)
    plain = without(channels, removed_by_names(channels, {layer: numbers_of(text) for layer, text in level.kept}))
    assert made.graph.parameters == pytest.approx(plain.parameters, abs=200)  # biases may be new
    onnx.checker.check_model(made.graph.model, full_check=True)
    new = net.x(60, seed=3)
    assert moved(graph, made.graph, new) <= 1.001 * moved(graph, plain, new)
    assert all(fit.after < fit.before for fit in made.fits)


def test_transposed_convolutions_are_fitted_too():
    """The decoder that reads pruned channels is fitted like any other layer."""
    net, output = STRUCTURES["transposed convolution"]()
    graph = net.graph(output)
    pruner = ChannelPruner(graph, Samples({"x": net.x(80, seed=2)}))
    fits = pruner.pruned(pruner.level(0.6, parameters, "size").kept).fits
    [fit] = [fit for fit in fits if fit.layer.startswith("convtranspose")]
    assert fit.after < 0.9 * fit.before


def test_same_samples_and_seed_give_the_same_bytes():
    """Two pruners of the same graph choose the same channels and fit the same weights."""
    net, output = STRUCTURES["squeezed"]()
    graph = net.graph(output)

    def made():
        pruner = ChannelPruner(graph, Samples({"x": net.x(40)}), seed=3)
        level = pruner.level(0.7, parameters, "size")
        return level, pruner.pruned(level.kept).graph.to_bytes()

    assert made() == made()


def test_constant_channels_go_without_a_loss():
    """A channel that is always the same is removed first, and the next layers take its value into their biases."""
    net = Net(seed=1)
    x = net.relu(net.conv("x", 8))
    weights, bias = (net.weights[name] for name in net.nodes[0].input[1:])
    weights[[1, 4, 6]], bias[[1, 4, 6]] = 0, 3
    graph = net.graph(net.head(net.relu(net.conv(x, 6, kernel=1))))
    pruner = ChannelPruner(graph, Samples({"x": net.x(40)}))
    layer = graph.nodes[0].name
    level = pruner.level(0.55, parameters, "size")
    assert dict(level.kept)[layer] == "0,2-3,5,7"
    assert moved(graph, pruner.pruned(level.kept).graph, net.x(30, seed=4)) < 1e-6


def test_levels_follow_the_cost_that_was_asked_for():
    """With instructions as the cost, early layers with many positions shrink more than with bytes."""
    net = Net(seed=2, size=16)
    x = net.relu(net.conv("x", 16))
    x = net.relu(net.conv(x, 16))
    x = net.relu(net.conv(x, 64, stride=8))
    graph = net.graph(net.head(net.relu(net.conv(x, 64))))
    pruner = ChannelPruner(graph, Samples({"x": net.x(40)}))
    profile = find_target("raspberry-pi-5", known_targets())
    one = pruner.level(0.6, parameters, "size")
    two = pruner.level(0.6, lambda small: estimate(small, profile, Recipe("int8")).value, "cost")
    assert one.left <= 0.6
    assert two.left <= 0.6

    def lost(level):
        kept = {layer: len(numbers_of(text)) for layer, text in level.kept}
        layers = [node.name for node in graph.nodes if node.op_type == "Conv"]
        return [1 - kept.get(name, width) / width for name, width in zip(layers, (16, 16, 64, 64), strict=True)]

    assert sum(lost(two)[:2]) > sum(lost(one)[:2])


@pytest.mark.parametrize("block", [8, 16])
def test_products_keep_whole_blocks(block):
    """Wide pointwise convolutions keep a multiple of the block, others any number; the share of the cost is kept."""
    net = Net(seed=3, size=8)
    x = net.relu(net.conv("x", 48, kernel=1))
    x = net.relu(net.conv(x, 64, kernel=1))
    graph = net.graph(net.head(net.relu(net.conv(x, 40))))
    pruner = ChannelPruner(graph, Samples({"x": net.x(40)}))
    level = pruner.level(0.55, parameters, "size", block)
    assert level.left <= 0.55
    kept = {layer: len(numbers_of(text)) for layer, text in level.kept}
    first, second, third = (node.name for node in graph.nodes if node.op_type == "Conv")
    assert kept.get(first, 48) % block == kept.get(second, 64) % block == 0
    assert kept[third] < 40
    assert pruner.level(0.55, parameters, "size").kept != level.kept


def test_stepper_gives_the_values_of_the_graph():
    """Tensors of each chunk are those of a whole run, and answers follow a changed layer."""
    net, output = STRUCTURES["concat"]()
    graph, x = net.graph(output), net.x(33)
    chunks = chunks_of(graph, Samples({"x": x}), least=10)
    assert len(chunks) >= 10
    stepper = Stepper(graph, chunks)
    first = graph.nodes[0]
    rows = sum(len(chunk["x"]) for chunk in chunks)
    assert sum(map(len, stepper.value(first.output[0]))) == rows
    np.testing.assert_allclose(stepper.answers()[output], graph.run({"x": x[:rows]})[output], rtol=1e-5, atol=1e-6)
    assert stepper.value(first.output[0]) is None  # dropped


def test_fixed_batch_runs_row_by_row():
    """A graph with a batch of 1 is pruned alike."""
    net, output = STRUCTURES["flat attention"]()
    graph = net.graph(output).with_batch(1)
    channels = channels_of(graph)
    removed = removed_by_names(channels, {graph.nodes[1].name: range(4, 16)})
    chunks = chunks_of(graph, Samples({"x": net.x(70)}), least=10)
    made = refit(channels, removed, without(channels, removed), chunks)
    assert made.fits
    assert len(made.answers[output]) == 70


def test_too_few_rows_are_told():
    """Channels are not chosen by a handful of rows."""
    net, output = STRUCTURES["plain"]()
    with pytest.raises(CalibrationError, match="9 calibration samples are too few"):
        ChannelPruner(net.graph(output), Samples({"x": net.x(9)}))
