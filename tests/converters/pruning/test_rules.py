"""The rules of pruning: elimination, allocation, least squares, and the text of kept channels."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.graph.graph import Graph
from converters.options import ConversionOptions
from converters.passes.channels.rules import channels_of
from converters.pruning.allocation import Point, path, removed_after, whole_blocks
from converters.pruning.elimination import Reader, eliminate
from converters.pruning.families import NO_RULE, UNITS_STAY, families_of, frozen_layers, removed_by_names
from converters.pruning.kept import numbers_by_layer, numbers_of, ranges_text
from converters.pruning.least_squares import Sums, fit
from converters.pruning.linear import linear_of
from converters.pruning.teaching import taught
from edgekit.bundle.recipe import CHANNELS, Recipe
from edgekit.errors import ConversionError, RecipeError, SettingsError
from tests.simulators.channel_models import Net
from tests.simulators.pruning_models import STRUCTURES, up_by_groups


def reader(x, weights, owner):
    return Reader(np.cov(x.T, bias=True), weights, np.asarray(owner))


def test_constant_and_repeated_channels_go_first():
    """A constant channel costs nothing, and of two equal ones one costs nothing, whatever their weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (500, 6))
    x[:, 2], x[:, 4] = 7.0, x[:, 1]
    weights = rng.normal(0, 1, (5, 6))
    weights[:, 2] = 100
    found = eliminate([reader(x, weights, range(6))], 6)
    assert found.order[0] == 2
    assert found.order[1] in (1, 4)
    assert found.costs[1] < 1e-3 < found.costs[2]
    assert (np.diff(found.costs) >= 0).all()


def test_cost_is_the_error_of_the_best_fit():
    """The costs are the squared errors of least squares on the channels that are left, as shares of the energy."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (800, 8)) @ rng.normal(0, 1, (8, 8))
    weights, owner = rng.normal(0, 1, (3, 8)), np.repeat(range(4), 2)
    found = eliminate([reader(x, weights, owner)], 4)
    centred = x - x.mean(axis=0)
    y = centred @ weights.T
    for count in (1, 2, 3):
        kept = centred[:, ~np.isin(owner, found.order[:count])]
        best = y - kept @ np.linalg.lstsq(kept, y, rcond=None)[0]
        assert found.costs[count - 1] == pytest.approx((best**2).sum() / (y**2).sum(), rel=0.05)


def test_costs_of_several_readers_are_added():
    """A channel that one reader does not need stays if another one needs it."""
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (400, 3))
    one, other = np.array([[0.0, 1.0, 0.5]]), np.array([[1.0, 0.0, 0.5]])
    assert eliminate([reader(x, one, range(3))], 3).order[0] == 0
    assert eliminate([reader(x, one, range(3)), reader(x, other, range(3))], 3).order[0] == 2


def test_path_takes_the_cheapest_steps_first():
    """Steps are ordered by divergence per saved share; a point above the hull of its family is passed over."""
    tables = [
        [Point(1, 0.5, 0.1), Point(2, 0.6, 0.2), Point(3, 2.0, 0.3)],
        [Point(4, 0.1, 0.2), Point(8, 1.0, 0.4)],
    ]
    steps = path(tables)
    assert [(step.family, step.before, step.removed) for step in steps] == [(1, 0, 4), (0, 0, 2), (1, 4, 8), (0, 2, 3)]
    assert removed_after(steps, 0, 2) == [0, 0]
    assert removed_after(steps, 1.5, 2) == [1, 4]
    assert removed_after(steps, 4, 2) == [3, 8]


@pytest.mark.parametrize("seed", range(12))
def test_fit_never_makes_held_out_reconstruction_worse(seed):
    """On new samples, fitted weights are at least as good as the old ones, with many or very few samples."""
    rng = np.random.default_rng(seed)
    groups, inputs, outputs = int(rng.choice([1, 3])), int(rng.integers(2, 20)), int(rng.integers(1, 6))
    rows = int(rng.choice([8, 30, 300]))
    true = rng.normal(0, 1, (groups, outputs, inputs))
    old = true + rng.normal(0, float(rng.choice([0.02, 0.3])), true.shape)
    mix = rng.normal(0, 1, (inputs, inputs))

    def drawn(count):
        x = rng.normal(0.5, 1, (count, groups, inputs)) @ mix
        return x, np.einsum("ngk,gok->ngo", x, true) + rng.normal(0, 1, (count, groups, outputs)) + 0.5

    folds = [Sums(groups, inputs, outputs) for _ in range(5)]
    for place in range(rows):
        folds[place % 5].add(*drawn(1))
    bias = np.zeros((groups, outputs))
    found = fit(folds, old, bias, intercept=True)
    new = Sums(groups, inputs, outputs)
    new.add(*drawn(4000))
    if found is not None:
        assert found.after < found.before
        assert new.error(found.weights, found.bias) < new.error(old, bias) * 1.02


def test_fit_that_does_not_help_is_undone():
    """Weights that are already the best ones stay as they are."""
    rng = np.random.default_rng(5)
    weights, folds = rng.normal(0, 1, (1, 4, 12)), [Sums(1, 12, 4) for _ in range(5)]
    for fold in folds:
        x = rng.normal(0, 1, (6, 1, 12))
        fold.add(x, np.einsum("ngk,gok->ngo", x, weights) + rng.normal(0, 2, (6, 1, 4)))
    assert fit(folds, weights, np.zeros((1, 4)), intercept=True) is None
    assert fit(folds[:1], weights * 2, np.zeros((1, 4)), intercept=True) is None  # nothing to hold out


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [3, 2], "pads": [0, 1, 2, 0], "dilations": [1, 2]},
        {"strides": [2, 2], "pads": [3, 3, 3, 3]},
    ],
)
def test_transposed_convolutions_are_linear_problems(given):
    """Inputs times weights, plus the bias, are the outputs at the same positions, for any strides and pads."""
    net = Net(seed=5)
    w, b = (net.constant(net.rng.normal(size=shape).astype(np.float32)) for shape in ((2, 4, 3, 3), (4,)))
    output = net.op("ConvTranspose", ["x", w, b], 4, **given)
    graph, x = net.graph(output), net.x(5)
    [node] = [node for node in graph.nodes if node.op_type == "ConvTranspose"]
    layer, y = linear_of(graph, node), graph.run({"x": x})[output]
    features, places = layer.samples(x, 60, np.random.default_rng(0))
    found = features[:, 0] @ layer.matrix.T + layer.bias(graph)
    np.testing.assert_allclose(found, layer.outputs_at(y, places)[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.weights_of(layer.matrix), graph.constants[w])


def test_kept_channels_as_text():
    """Ranges are short, and are read back."""
    assert ranges_text([0, 1, 2, 3, 7, 9, 10]) == "0-3,7,9-10"
    assert numbers_of("0-3,7,9-10") == [0, 1, 2, 3, 7, 9, 10]


@pytest.mark.parametrize("text", ["5-3", "0-2,5-3", "3,1", "3,3", "0-99999999999"])
def test_kept_channels_that_do_not_rise_are_told(text):
    """A range that runs backwards would be passed over in silence, and an endless one would fill the memory."""
    with pytest.raises(RecipeError, match="expected rising channels below"):
        numbers_by_layer([("conv", text)])


def test_recipes_of_the_user_are_checked():
    """A layer that is named twice, a share that is none, and a seed that no library takes are refused."""
    kept = (("conv", "0-3"),)
    for wrong, reason in (
        ({"kept": (*kept, *kept)}, "names layer conv twice"),
        ({"share": float("nan")}, "share is nan"),
        ({"share": 50.0}, "expected more than 0 and less than 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "expected 0 to 4294967295"),
    ):
        recipe = Recipe(prune=CHANNELS, **{"kept": kept, **wrong})
        with pytest.raises(RecipeError, match=reason):
            ConversionOptions(targets=["server"], recipe=recipe)
    with pytest.raises(SettingsError, match="seed is 4294967296"):
        ConversionOptions(targets=["server"], seed=2**32)
    assert ConversionOptions(targets=["server"], recipe=Recipe(prune=CHANNELS, kept=kept, share=0.5, seed=7)).recipe


def test_layers_without_a_rule_are_named_too():
    """A recurrent layer and a transposed convolution with groups keep their channels, and the reasons say why."""
    for make, word in ((STRUCTURES["recurrent"], "lstm"), (up_by_groups, "convtranspose")):
        net, output = make()
        frozen = frozen_layers(channels_of(net.graph(output)))
        [reason] = [reason for name, reason in frozen.items() if name.startswith(word)]
        assert reason == (UNITS_STAY if word == "lstm" else NO_RULE)


def test_integer_outputs_teach_nothing():
    """An output with the index of the class has no gradient; the scores and the layers beside it teach."""
    net, scores = STRUCTURES["plain"]()
    model = net.graph(scores).model
    model.graph.node.append(helper.make_node("ArgMax", [scores], ["index"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("index", TensorProto.INT64, ["batch", 1]))
    graph = Graph(model)
    channels = channels_of(graph)
    answers, layers = taught(channels, np.zeros(len(channels.roots), dtype=bool), graph, {"x": net.x(8)})
    assert list(answers) == [scores]
    assert len(layers) == 3


def test_layers_teach_by_rows():
    """Layers over rows times words teach row by row; those with the words first hold no rows, and are left out."""
    for name, shapes in (("flat attention", [(9, 6, 5)] + [(9, 6, 16)] * 3), ("words first", [])):
        net, output = STRUCTURES[name]()
        graph, x = net.graph(output), net.x(9)
        channels = channels_of(graph)
        answers, layers = taught(channels, np.zeros(len(channels.roots), dtype=bool), graph, {"x": x})
        assert [layer.shape for layer in layers.values()] == shapes
        _, last = taught(channels, np.zeros(len(channels.roots), dtype=bool), graph, {"x": x[8:]})
        for layer, value in layers.items():
            np.testing.assert_allclose(value[8:], last[layer], atol=1e-5)
        np.testing.assert_allclose(answers[output], graph.run({"x": x})[output])


@pytest.mark.parametrize(
    ("removed", "width", "block", "expected"),
    [
        (5, 64, 8, 0),
        (8, 64, 8, 8),
        (20, 64, 8, 16),
        (20, 64, 16, 16),
        (30, 64, 16, 16),
        (60, 64, 8, 60),  # less than one block is left
        (6, 15, 8, 6),  # less than two blocks from the start
        (1, 59, 8, 0),
        (4, 59, 8, 3),
        (7, 64, 1, 7),
        (7, 0, 8, 7),  # units of several channels
    ],
)
def test_layers_keep_whole_blocks_of_channels(removed, width, block, expected):
    """A channel that begins a block costs as much as the whole block, so the block stays."""
    assert whole_blocks(removed, width, block) == expected


def test_families_are_what_the_same_layers_make():
    """Layers tied by a sum are one family; each family says which layers it has."""
    net, output = STRUCTURES["residual"]()
    families = families_of(channels_of(net.graph(output)))
    assert [(len(family.layers), len(family.units)) for family in families] == [(2, 8), (1, 6)]
    assert [family.width for family in families] == [8, 6]


def test_units_of_several_channels_have_no_width():
    """Channels of a grouped convolution go by groups, so blocks of channels mean nothing there."""
    net, output = STRUCTURES["grouped"]()
    families = families_of(channels_of(net.graph(output)))
    assert 0 in [family.width for family in families]


def test_wrong_names_are_told():
    """A recipe with unknown layers or channels, fixed channels or parts of a group is refused with the reason."""
    net, output = STRUCTURES["residual"]()
    channels = channels_of(net.graph(output))
    layers = [node.name for node in channels.graph.nodes if node.op_type in ("Conv", "Gemm")]
    for kept, reason in (
        ({"nothing": [0]}, "which the model does not have"),
        ({layers[0]: [0, 8]}, "has the channels 0 to 7"),
        ({layers[0]: []}, "others or none"),
        ({layers[-1]: [0]}, f"have to stay: it reaches the output {output}"),
        ({layers[0]: [0, 1], layers[1]: [2, 3]}, "does not keep whole groups"),
    ):
        with pytest.raises(ConversionError, match=reason):
            removed_by_names(channels, kept)
    assert removed_by_names(channels, {layers[0]: [0, 5]}).sum() == 12
