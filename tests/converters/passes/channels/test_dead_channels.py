"""Dead channels on the canonical graph: which are removed, which stay, and that outputs do not change."""

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.calibration.calibrate import tensor_values
from converters.data.samples import Samples
from converters.passes import RemoveDeadChannels, run_pass
from converters.passes.channels.bounds import ChannelBounds
from converters.passes.channels.dead_channels import DeadChannels, layer_channels
from converters.passes.channels.rules import channels_of
from tests.simulators import conv_models
from tests.simulators.channel_models import NEVER, SELDOM, Net, random_network


def proven(graph):
    return run_pass(RemoveDeadChannels(), graph).graph


def measured(graph, x):
    return DeadChannels(graph, Samples({"x": x})).without()


def same(before, after, x):
    """Check that both graphs give the same outputs for `x` (N, ...), up to float rounding."""
    for name, expected in before.run({"x": x}).items():
        np.testing.assert_allclose(after.run({"x": x})[name], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def left(graph):
    """Number of channels of each layer, in order of execution."""
    return list(layer_channels(graph).values())


def both(net, *outputs):
    """Channels left after removing proven and after removing measured dead channels; outputs must not change."""
    graph, x = net.graph(*outputs), net.x()
    one, two = proven(graph), measured(graph, x)
    same(graph, one, net.x(20, seed=9, scale=30.0))
    same(graph, two, x)
    return left(one), left(two)


@pytest.mark.parametrize("how", [NEVER, SELDOM])
def test_chain_loses_dead_channels(how):
    """In Conv, Relu, Conv, zero weights are proven dead, and a low bias only measured dead."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=[0, 3, 7], how=how))
    by_proof, by_samples = both(net, net.head(x))
    assert by_proof == ([5, 3] if how == NEVER else [8, 3])
    assert by_samples == [5, 3]


def test_bounded_input_proves_what_a_low_bias_does():
    """After Relu6, values are at most 6, so a bias far below 0 proves a channel dead."""
    net = Net()
    x = net.relu6(net.conv("x", 6))
    x = net.relu(net.conv(x, 8, dead=[1, 2], how=SELDOM))
    assert both(net, net.head(x)) == ([6, 6, 3], [6, 6, 3])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_scalar_beside_one_channel_stays(shape):
    """It is one number for all positions, and not the channel's own number."""
    net = Net()
    x = net.conv(net.relu(net.conv("x", 8, dead=[0, 3])), 1)
    x = net.op("Mul", [x, net.constant(np.full(shape, -2.0, np.float32))], width=1)
    assert both(net, net.head(net.relu(x))) == ([6, 1, 3], [6, 1, 3])


def test_depthwise_channels_go_with_those_they_come_from():
    """A channel that only a dead depthwise channel reads is removed with it."""
    net = Net()
    x = net.relu(net.deep(net.relu(net.conv("x", 8)), dead=[2, 5]))
    assert both(net, net.head(x)) == ([6, 6, 3], [6, 6, 3])


def test_depthwise_bias_keeps_a_channel_alive():
    """A positive bias makes the output of a zero channel nonzero, so the channel stays."""
    net = Net()
    x = net.deep(net.relu(net.conv("x", 8, dead=[2, 5])))
    bias = net.weights[net.nodes[-1].input[2]]
    bias[2], bias[5] = 0.5, -0.5
    assert both(net, net.head(net.relu(x))) == ([7, 7, 3], [7, 7, 3])


def test_depthwise_with_several_outputs_a_channel_keeps_or_loses_all_of_them():
    """A channel with two outputs is removed only if both are dead."""
    net = Net()
    x = net.relu(net.conv("x", 4))
    x = net.relu(net.conv(x, 8, group=4, dead=[0, 2, 3]))
    by_proof, _ = both(net, net.head(x))
    assert by_proof == [3, 6, 3]


def test_channels_of_a_sum_go_together():
    """With a skip connection, a channel is dead only if it is dead in both branches."""
    net = Net()
    skip = net.relu(net.conv("x", 8, dead=[0, 1, 2]))
    x = net.op("Add", [net.relu(net.conv(skip, 8, dead=[1, 2, 3])), skip])
    assert both(net, net.head(x)) == ([6, 6, 3], [6, 6, 3])


def test_every_reader_counts():
    """A channel stays if it is 0 for one reader but not for another."""
    net = Net()
    x = net.conv("x", 8, dead=[0, 1])  # -1: dead behind Relu only
    one, two = net.head(net.relu(x)), net.head(x)
    assert both(net, net.op("Add", [one, two])) == ([8, 3, 3], [8, 3, 3])


def test_joined_channels_go_by_their_places():
    """After a Concat of two layers, each layer loses its own dead channels."""
    net = Net()
    parts = [net.relu(net.conv("x", 5, dead=[0])), net.relu(net.conv("x", 7, dead=[1, 6]))]
    assert both(net, net.head(net.op("Concat", parts, 12, axis=1)))[0] == [4, 5, 3]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["Flatten", "Reshape"])
def test_flattened_images_lose_every_place_of_a_channel(kind, turned):
    """The dense layer loses one input for each position of a removed channel, in both layouts."""
    net = Net(size=4)
    x = net.relu(net.conv("x", 6, dead=[1, 4]))
    if turned:
        x = net.op("Transpose", [x], perm=[0, 2, 3, 1])
    if kind == "Flatten":
        x = net.op("Flatten", [x])
    else:
        x = net.op("Reshape", [x, net.constant(np.array([-1, 96], np.int64))])
    graph = net.graph(net.dense(x, 96, 3))
    small = proven(graph)
    same(graph, small, net.x())
    assert left(small) == [4, 3]
    assert 64 in small.constants[small.nodes[-1].input[1]].shape


def test_reshape_that_mixes_channels_holds_them():
    """A dense layer over pairs of channels fixes them, because its inputs cannot be assigned to channels."""
    net = Net(size=4)
    x = net.relu(net.conv("x", 6, dead=[1, 4]))
    x = net.op("Reshape", [x, net.constant(np.array([-1, 3, 32], np.int64))])
    assert both(net, net.dense(x, 32, 3, kind="MatMul")) == ([6, 3], [6, 3])


def test_batch_taken_from_the_input_does_not_hold_channels():
    """Exporters reshape to (batch, rest) with the batch read from the tensor; this fixes no channel."""
    net = Net(size=4)
    x = net.relu(net.conv("x", 6, dead=[1, 4]))
    first = net.constant(np.array([0], np.int64))
    batch = net.op("Gather", [net.op("Shape", [x]), first])
    wanted = net.op("Concat", [batch, net.constant(np.array([-1], np.int64))], axis=0)
    graph = net.graph(net.dense(net.op("Reshape", [x, wanted]), 96, 3))
    channels = channels_of(graph)
    assert channels.removable(ChannelBounds(channels).alive()).any()
    same(graph, proven(graph), net.x())


def test_channels_nobody_reads_go():
    """A channel is removed if its weights are 0 at every reader, whatever its values."""
    net = Net()
    x = net.relu(net.conv("x", 8))
    y = net.conv(x, 4, kernel=1)
    net.weights[net.nodes[-1].input[1]][:, [2, 6]] = 0
    assert both(net, net.head(net.relu(y))) == ([6, 4, 3], [6, 4, 3])


def test_split_and_resize_count_what_is_left():
    """Constant sizes of Split and Resize shrink with the channels."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=[1, 5, 6]))
    one, two = net.op("Split", [x, net.constant(np.array([3, 5], np.int64))], outputs=2, axis=1)
    net.widths.update({one: 3, two: 5})
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    two = net.op("Resize", [two, "", scales], mode="nearest")
    answer = net.op("Add", [net.head(one), net.head(two)])
    assert both(net, answer)[0] == [5, 3, 3]


def test_transposed_convolution_is_cut_on_both_sides():
    """Weights of ConvTranspose have the input channels on axis 0."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=[1, 5]))
    w = net.constant(net.rng.normal(0, 0.3, (8, 6, 2, 2)).astype(np.float32))
    b = np.zeros(6, np.float32)
    b[3] = -500
    x = net.relu(net.op("ConvTranspose", [x, w, net.constant(b)], 6, strides=[2, 2]))
    by_proof, by_samples = both(net, net.head(x))
    assert by_proof == [6, 6, 3]
    assert by_samples == [6, 5, 3]


def test_each_layer_keeps_a_channel():
    """If all channels are dead, the first one stays; the outputs are constant."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=range(8)))
    assert both(net, net.head(x)) == ([1, 3], [1, 3])


def test_channels_pass_where_the_batch_moves():
    """Axes can change places in any way, also the channels and the batch."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=[0, 5]))
    x = net.op("Transpose", [net.op("Transpose", [x], perm=[1, 0, 2, 3])], perm=[1, 0, 2, 3])
    assert both(net, net.head(x)) == ([6, 3], [6, 3])


@pytest.mark.parametrize("kind", ["Softmax", "LRN", "ReduceMean", "Group"])
def test_what_is_not_known_holds_its_channels(kind):
    """Operators that mix channels, move axes or have no rule fix their channels."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=[0, 5]))
    if kind == "Softmax":
        x = net.op("Softmax", [x], axis=1)
    elif kind == "LRN":
        x = net.op("LRN", [x], size=3)
    elif kind == "ReduceMean":
        x = net.op("ReduceMean", [x], 1, axes=[1], keepdims=1)
    else:
        x = net.conv(x, 8, group=4)
    by_proof, by_samples = both(net, net.head(x))
    assert by_proof[0] == by_samples[0] == 8


def test_outputs_of_the_model_are_held():
    """A channel of a model output stays, dead or not."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=[0, 5]))
    assert both(net, x, net.head(x)) == ([8, 3], [8, 3])


def test_subgraphs_hold_everything():
    """Channels stay if a subgraph such as that of If could read them."""
    net = Net()
    x = net.relu(net.conv("x", 8, dead=[0, 5]))
    branches = {}
    for branch in ("then_branch", "else_branch"):
        result = helper.make_tensor_value_info(f"{branch}.y", onnx.TensorProto.FLOAT, ["batch", 8, 8, 8])
        node = helper.make_node("Identity", [x], [f"{branch}.y"])
        branches[branch] = helper.make_graph([node], branch, [], [result])
    largest = net.op("ReduceMax", ["x"], keepdims=0)
    chosen = net.op("If", [net.op("Cast", [largest], to=onnx.TensorProto.BOOL)], 8, **branches)
    assert both(net, net.op("Add", [net.head(x), net.head(chosen)])) == ([8, 3, 3], [8, 3, 3])


def test_model_without_dead_channels_is_the_same_graph():
    """Without dead channels, the graph keeps every byte and `modified` is False."""
    graph = conv_models.separable()
    result = run_pass(RemoveDeadChannels(), graph)
    assert not result.modified
    assert result.graph is graph


def test_shared_weights_are_cut_for_each_reader():
    """Of two layers with the same weights, only the one with dead inputs gets smaller weights."""
    net = Net()
    one = net.relu(net.conv("x", 8, dead=[0, 5]))
    two = net.relu(net.conv("x", 8))
    first = net.conv(one, 4)
    shared = list(net.nodes[-1].input)
    second = net.op("Conv", [two, *shared[1:]], 4, pads=[1] * 4)
    answer = net.op("Add", [net.head(net.relu(first)), net.head(net.relu(second))])
    assert both(net, answer)[0] == [6, 8, 4, 4, 3, 3]


@pytest.mark.parametrize("seed", range(40))
def test_removal_never_changes_answers(seed):
    """Removing proven dead channels changes no output for any input, and measured ones none on the samples."""
    graph, net = random_network(seed, NEVER)
    small = proven(graph)
    same(graph, small, net.x(10, seed, scale=20.0))
    graph, net = random_network(seed, SELDOM)
    x = net.x(64, seed)
    dead = DeadChannels(graph, Samples({"x": x}))
    same(graph, dead.without(), x)
    assert dead.active_rows(Samples({"x": x})) == 0
    onnx.checker.check_model(dead.without().model, full_check=True)


def test_random_networks_have_what_can_go():
    """Most random networks have proven dead channels, and more measured ones, so the test above is not empty."""
    counts = []
    for seed in range(12):
        graph, net = random_network(seed, NEVER)
        counts.append((sum(left(graph)), sum(left(proven(graph))), sum(left(measured(graph, net.x())))))
    assert sum(after < before for before, after, _ in counts) >= 9
    assert all(by_samples <= by_proof for _, by_proof, by_samples in counts)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_every_value(seed):
    """All values of random networks are inside their intervals, for small and large inputs."""
    graph, net = random_network(seed, SELDOM)
    channels = channels_of(graph)
    bounds = ChannelBounds(channels)
    for scale in (0.1, 1.0, 100.0):
        for part in tensor_values(graph, Samples({"x": net.x(16, seed, scale)})):
            for name, lanes in channels.lanes.items():
                if name in part:
                    low, high = bounds.of(name, lanes.axis, len(lanes.ids))
                    values = np.moveaxis(part[name], lanes.axis, -1).reshape(-1, len(lanes.ids))
                    assert (values >= low).all(), name
                    assert (values <= high).all(), name


def test_waking_rows_are_counted():
    """Counts exactly the rows with a removed channel that is not 0."""
    net = Net()
    graph = net.graph(net.head(net.relu(net.conv("x", 8, dead=[3], how=SELDOM))))
    dead = DeadChannels(graph, Samples({"x": net.x()}))
    x = net.x(30, seed=5)
    x[:4] *= 1000
    assert dead.found
    assert dead.active_rows(Samples({"x": x})) == 4
