import math

import onnx
import pytest
from onnx import TensorProto, helper

from converters.cost import estimate, memory_mib
from converters.graph import Graph
from edgekit.recipe import Recipe
from edgekit.targets import builtin_targets, find_target, parse_targets

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
# Instructions counted on emulated cores; see the module.
COUNTS = [
    (Recipe(), 1.416e6, 1.356e6),
    (Recipe("int8"), 1.946e6, 0.717e6),
    (Recipe("int8-dynamic"), 2.475e6, 1.125e6),
    (Recipe("int8-weights"), 1.415e6, 1.354e6),
    (Recipe("int8-dynamic", float_layers=DEPTHWISE, int4_layers=FOUR), 1.625e6, 1.026e6),
]


@pytest.mark.parametrize(("recipe", "a72", "a76"), COUNTS, ids=lambda v: v.id if isinstance(v, Recipe) else "")
def test_estimate_is_near_what_was_counted(spotter, recipe, a72, a76):
    """Within 5 % of the instruction counts on both cores, in every precision that was counted."""
    for target, counted in (("raspberry-pi-4", a72), ("raspberry-pi-5", a76)):
        cost = estimate(spotter, find_target(target, builtin_targets()), recipe)
        assert (cost.kind, cost.unit) == ("estimate", "instructions")
        assert cost.value == pytest.approx(counted, rel=0.05)


def test_float_is_cheapest_without_the_dot_product_and_static_int8_with_it(spotter):
    """The choice must differ between the two boards."""
    kinds = [recipe for recipe, _, _ in COUNTS]
    best = {}
    for target in ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "android-arm64"):
        profile = find_target(target, builtin_targets())
        best[target] = min(kinds, key=lambda recipe: estimate(spotter, profile, recipe).value).precision
    assert best["raspberry-pi-3"] == best["raspberry-pi-4"] == "float32"
    assert best["raspberry-pi-5"] == best["android-arm64"] == "int8"


def test_accelerators_count_multiply_adds_by_their_own_speed(spotter):
    """A Jetson's kernels are its own; the estimate is a share of float work and says so in its unit."""
    profile = find_target("jetson-orin", builtin_targets())
    full, half = (estimate(spotter, profile, Recipe(precision)) for precision in ("float32", "float16"))
    assert full.value == sum(spotter.macs.values()) == 2 * half.value
    assert full.unit == "float32 multiply-adds"


def test_a_float_layer_inside_static_int8_pays_for_its_conversions(spotter):
    """On a core with the dot product each exception costs more, in conversions and in slower arithmetic."""
    profile = find_target("raspberry-pi-5", builtin_targets())
    costs = [estimate(spotter, profile, Recipe("int8", float_layers=FOUR[:n])).value for n in range(4)]
    assert costs == sorted(costs)
    assert costs[3] > 1.5 * costs[0]


def test_weights_beyond_the_cache_cost_by_the_byte():
    """A dense layer of 4 million weights: float streams 16 MB a row, int8 a quarter."""
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
    """A profile of one's own needs no figures: the dot product in its features is enough."""
    text = '[mine]\ntitle="Mine"\narch="aarch64"\nruntimes=["litert"]\nmemory_mib=64\nprecisions=["float32","int8"]\n'
    plain = parse_targets(text)["mine"]
    quick = parse_targets(text + 'cpu_features=["asimd","asimddp"]\n')["mine"]
    assert estimate(spotter, quick, Recipe("int8")).value < 0.5 * estimate(spotter, plain, Recipe("int8")).value
