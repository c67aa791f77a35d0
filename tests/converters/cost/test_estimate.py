import itertools
import json
import math
import statistics
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from converters.cost.estimate import estimate, memory_mib
from converters.cost.overhead import Loop, Overhead
from converters.graph.graph import Graph
from converters.passes import CANONICAL_PASSES, Simplify, run_pass
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import builtin_targets, find_target, parse_targets
from tests.simulators import conv_models, dense_models, headed_models
from tests.simulators.channel_models import Net

CHANNELS, BLOCKS = 64, 4


def tensor(name, *shape):
    return helper.make_tensor(name, TensorProto.FLOAT, shape, [0.01] * math.prod(shape))


@pytest.fixture(scope="module")
def spotter():
    """A keyword spotter's layers: one convolution of 10 by 4, four depthwise and pointwise pairs, one dense."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c0"], "first", strides=[2, 2], pads=[4, 1, 5, 1], kernel_shape=[10, 4])
    ]
    weights = [tensor("w", CHANNELS, 1, 10, 4), tensor("dense", CHANNELS, 12)]
    at = "c0"
    for i in range(BLOCKS):
        weights += [tensor(f"d{i}", CHANNELS, 1, 3, 3), tensor(f"p{i}", CHANNELS, CHANNELS, 1, 1)]
        nodes += [
            helper.make_node("Conv", [at, f"d{i}"], [f"dd{i}"], f"deep{i}", group=CHANNELS, pads=[1, 1, 1, 1]),
            helper.make_node("Conv", [f"dd{i}", f"p{i}"], [f"pp{i}"], f"point{i}"),
            helper.make_node("Relu", [f"pp{i}"], [f"r{i}"]),
        ]
        at = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "dense"], ["y"], "last"),
    ]
    ends = [
        helper.make_tensor_value_info(*end) for end in (("x", 1, ["b", 1, 49, 10]), ("y", TensorProto.FLOAT, ["b", 12]))
    ]
    graph = helper.make_graph(nodes, "spotter", [ends[0]], [ends[1]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return Graph(model)


DEPTHWISE = tuple(f"deep{i}" for i in range(BLOCKS))
FOUR = ("first", *(f"point{i}" for i in range(BLOCKS)), "last")
KINDS = [
    Recipe(),
    Recipe("int8"),
    Recipe("int8-dynamic"),
    Recipe("int8-weights"),
    Recipe("int8-dynamic", int4_layers=FOUR[1:-1]),
]
COUNTS = json.loads(Path(__file__).with_name("instruction_counts.json").read_text())  # of our own files; see cost.py
NETWORKS = {
    "residual": conv_models.residual,
    "mobile": conv_models.mobile,
    "separable": conv_models.separable,
    "dense-64": dense_models.autoencoder,
    "dense-256": lambda: dense_models.autoencoder(width=256),
    "lstm-32": lambda: dense_models.lstm(hidden=32, features=16),
    "lstm-64": lambda: dense_models.lstm(hidden=64, features=32),
    "gru": lambda: headed_models.gru(hidden=24, features=12),
    "detector": lambda: headed_models.detector(size=32),
    "image-to-image": headed_models.image_to_image,
    "encoder": lambda: dense_models.encoder(steps=16, size=32),
}
USUAL = ("keywords", "residual", "mobile", "dense-256", "lstm-32", "lstm-64")
UNUSUAL = ("separable", "dense-64", "gru", "detector", "image-to-image", "encoder")  # small, or of many small steps
BOARDS = ("raspberry-pi-4", "raspberry-pi-5")


@pytest.fixture(scope="module")
def compare(spotter):
    """Estimate and instruction count of a network: (recipe id, board, estimate, count)."""

    def compare(name):
        graph = spotter
        if name != "keywords":
            graph = NETWORKS[name]()
            for one in CANONICAL_PASSES:
                graph = run_pass(one, graph).graph
            graph = run_pass(Simplify(), graph.with_batch(1)).graph
        found = []
        for entry in COUNTS[name]:
            layers = {key: tuple(entry[key]) for key in ("float_layers", "int4_layers") if key in entry}
            recipe = Recipe(entry["precision"], **layers)
            for board, count in zip(BOARDS, entry["counts"], strict=True):
                cost = estimate(graph, find_target(board, builtin_targets()), recipe)
                assert cost.unit == "instructions"
                found.append((recipe.id, board, cost.value, count))
        return found

    return compare


@pytest.mark.parametrize("name", USUAL)
def test_estimate_is_near_what_was_counted(compare, name):
    """Convolutions, dense layers and LSTMs: every precision within 22 % on both cores, half of them within 10 %."""
    errors = {(recipe, board): found / count - 1 for recipe, board, found, count in compare(name)}
    assert {key: error for key, error in errors.items() if abs(error) > 0.22} == {}
    assert statistics.median(map(abs, errors.values())) < 0.10


@pytest.mark.parametrize("name", UNUSUAL)
def test_estimate_of_other_networks_is_of_the_right_size(compare, name):
    """Small networks, GRUs, heads and attention: from a third of the count to twice that."""
    assert all(0.3 < found / count < 2 for _, _, found, count in compare(name))


def test_the_cheapest_by_estimate_is_nearly_the_cheapest_by_count(compare):
    """Of pairs of candidates that differ by 5 % or more, the estimate orders nine in ten correctly."""
    right = total = 0
    for name in (*USUAL, *UNUSUAL):
        for board in BOARDS:
            rows = [(found, count) for _, where, found, count in compare(name) if where == board]
            chosen = min(rows)[1]
            assert chosen < 1.45 * min(count for _, count in rows), (name, board)
            for (one, counted), (other, known) in itertools.combinations(rows, 2):
                if abs(counted / known - 1) > 0.05:
                    total += 1
                    right += (one < other) == (counted < known)
    assert total > 400
    assert right / total > 0.9


@pytest.mark.parametrize("board", ["raspberry-pi-4", "raspberry-pi-5"])
@pytest.mark.parametrize(
    ("size", "make", "counted"),  # millions of instructions on the Cortex-A72 with 50 outputs, 56 and 64
    [
        ((24, 5), lambda net, width: net.conv("x", width, kernel=1), (0.214, 0.157, 0.179)),
        ((4, 4), lambda net, width: net.dense(net.op("Flatten", ["x"]), 1024, width), (0.101, 0.030, 0.034)),
        ((24, 5), lambda net, width: net.conv("x", width), (0.377, 0.377, 0.430)),
    ],
    ids=["pointwise", "dense", "convolution"],
)
def test_a_float_product_with_a_part_of_8_outputs_costs_more_than_the_whole(board, size, make, counted):
    """XNNPACK computes it in other kernels; a convolution with a window computes 8 outputs in place of the part."""

    def cost(width):
        net = Net(channels=64)
        net.inputs["x"] = ["batch", 64, *size]
        return estimate(net.graph(make(net, width)), find_target(board, builtin_targets()), Recipe()).value

    costs = [cost(width) for width in (50, 56, 64)]
    assert [one / costs[2] for one in costs] == pytest.approx([one / counted[2] for one in counted], rel=0.12)


def test_dynamic_depthwise_layers_cost_what_they_cost_in_float(spotter):
    """Dynamic depthwise layers have integer weights and compute in float."""
    profile = find_target("raspberry-pi-5", builtin_targets())
    as_is, in_float = (
        estimate(spotter, profile, recipe).value
        for recipe in (Recipe("int8-dynamic"), Recipe("int8-dynamic", float_layers=DEPTHWISE))
    )
    assert as_is == in_float


def test_float_is_cheapest_without_the_dot_product_and_static_int8_with_it(spotter):
    """The cheapest kind differs between boards with and without the dot product."""
    best = {}
    for target in ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "android-arm64"):
        profile = find_target(target, builtin_targets())
        best[target] = min(KINDS, key=lambda recipe: estimate(spotter, profile, recipe).value).precision
    assert best["raspberry-pi-3"] == best["raspberry-pi-4"] == "float32"
    assert best["raspberry-pi-5"] == best["android-arm64"] == "int8"


def test_accelerators_count_multiply_adds_by_their_own_speed(spotter):
    """For a Jetson, the estimate is in float32 multiply-adds and not in instructions."""
    profile = find_target("jetson-orin", builtin_targets())
    full, half = (estimate(spotter, profile, Recipe(precision)) for precision in ("float32", "float16"))
    assert full.value == sum(spotter.macs.values()) == 2 * half.value
    assert full.unit == "float32 multiply-adds"


def test_a_float_layer_inside_static_int8_pays_for_its_conversions(spotter):
    """On a core with the dot product, a float layer costs more, for conversions and slower arithmetic."""
    profile = find_target("raspberry-pi-5", builtin_targets())
    costs = [estimate(spotter, profile, Recipe("int8", float_layers=FOUR[:n])).value for n in range(4)]
    assert costs == sorted(costs)
    assert costs[3] > 1.5 * costs[0]


def test_weights_beyond_the_cache_cost_by_the_byte():
    """A dense layer of 4 million weights reads 16 MB per row in float and a quarter in int8."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")],
        "wide",
        [helper.make_tensor_value_info("x", 1, ["b", 2048])],
        [helper.make_tensor_value_info("y", 1, ["b", 2048])],
        [helper.make_tensor("w", 1, [2048, 2048], b"\0" * 2048 * 2048 * 4, raw=True)],
    )
    wide = Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    profile = find_target("raspberry-pi-4", builtin_targets())
    assert estimate(wide, profile, Recipe("int8-dynamic")).value < 0.6 * estimate(wide, profile, Recipe()).value
    assert memory_mib(wide, 1 << 20) == 18


def test_a_users_processor_is_known_by_its_features(spotter):
    """A user's profile needs no cost figures: its CPU features are enough."""
    text = '[mine]\ntitle="Mine"\narch="aarch64"\nruntimes=["litert"]\nmemory_mib=64\nprecisions=["float32","int8"]\n'
    plain = parse_targets(text)["mine"]
    quick = parse_targets(text + 'cpu_features=["asimd","asimddp"]\n')["mine"]
    assert estimate(spotter, quick, Recipe("int8")).value < 0.5 * estimate(spotter, plain, Recipe("int8")).value


# Instructions of one run of an LSTM that is a loop, counted on x86-64 by cachegrind: steps, the loop, the count.
LOOPS = [
    (Loop(32, 19, 5120, 1196), 0.475e6),
    (Loop(64, 19, 5120, 1196), 1.094e6),
    (Loop(64, 19, 18432, 2380), 1.650e6),
    (Loop(64, 19, 69632, 4748), 3.633e6),
    (Loop(64, 26, 5120, 5301), 4.195e6),
    (Loop(128, 19, 5120, 1196), 2.101e6),
    (Loop(128, 26, 5120, 9397), 12.280e6),
]


@pytest.mark.parametrize(("loop", "counted"), LOOPS, ids=str)
def test_a_loop_costs_about_what_was_counted(loop, counted):
    """A loop replaces the recurrent layer of the graph in the cost."""
    graph, profile = recurrent(), find_target("x86-64", builtin_targets())
    looped = estimate(graph, profile, Recipe(route="direct"), Overhead((loop,))).value
    assert looped == pytest.approx(counted, rel=0.2)
    assert looped > estimate(graph, profile, Recipe()).value


def test_calls_of_the_runtime_cost():
    """Operators outside delegates cost a call each; a file with fewer calls than the lowered one costs less."""
    graph, profile = recurrent(), find_target("raspberry-pi-4", builtin_targets())
    more, none, fewer = (
        estimate(graph, profile, Recipe(route="direct"), Overhead((), calls)).value for calls in (3, 0, -1)
    )
    assert fewer < none < more


def recurrent():
    """One LSTM of 8 units over 16 steps of 4 values."""
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["all"], "memory", hidden_size=8)]
    ends = [helper.make_tensor_value_info("x", 1, [16, 1, 4]), helper.make_tensor_value_info("all", 1, [16, 1, 1, 8])]
    weights = [tensor("w", 1, 32, 4), tensor("r", 1, 32, 8)]
    graph = helper.make_graph(nodes, "recurrent", [ends[0]], [ends[1]], weights)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
