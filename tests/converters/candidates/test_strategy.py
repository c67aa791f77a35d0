import numpy as np
import onnx

from converters import convert
from converters.backends import Layer
from converters.backends.layers import layers_of
from converters.calibration.calibrate import calibrate
from converters.candidates.sensitivity import Sensitivity, float_answers, rounded, sensitivities
from converters.candidates.strategy import MAX_CANDIDATES, NEGLIGIBLE, Search
from converters.data.samples import Samples
from converters.frontends.onnx import canonical
from converters.quality.measured import Budget, Measured
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import Recipe
from tests.simulators import models
from tests.simulators.conv_models import residual
from tests.simulators.drops import judgement

LAYERS = [
    Sensitivity(Layer(f"l{i}", "Conv", weights=100, macs=1000, four_bit=i != 3), int8=0.1 / (i + 1), int4=four)
    for i, four in enumerate((0.5, 0.01, 0.3, None, 0.02, 0.4))
]
KINDS = [Recipe(), Recipe("int8"), Recipe("int8-dynamic")]


BYTES = {"float32": 4000, "float16": 2000, "int8": 1300, "int8-dynamic": 1200, "int8-weights": 1000}
COSTS = {"float32": 100.0, "float16": 100.0, "int8": 90.0, "int8-dynamic": 95.0, "int8-weights": 100.0}


class World:
    """A maker of candidates with usual bytes and costs, whose drops are those of `drops`."""

    def __init__(self, drops):
        self.asked = []
        self._drops = drops

    def __call__(self, recipes):
        self.asked.extend(recipes)
        found = []
        for recipe in recipes:
            drop = self._drops(recipe)
            fault = "" if drop is not None else "refused"
            size, cost = BYTES[recipe.precision] + 100 * len(recipe.float_layers), COSTS[recipe.precision]
            judged = None if drop is None else judgement(drop)
            found.append(
                Measured(recipe, size, Cost("estimate", cost, "macs"), False, judged, fault, divergence=drop or 0.0)
            )
        return found


def search(drops, kinds=KINDS, layers=LAYERS):
    world = World(drops)
    found = Search(world, budget=Budget()).run(kinds, lambda: layers)
    assert [m.recipe for m in found] == world.asked
    assert len({recipe.id for recipe in world.asked}) == len(world.asked) <= MAX_CANDIDATES
    return world.asked


def test_layers_of_4_bits_are_fewer_until_the_budget_is_kept():
    """4 bits in all layers, in all but the ends, then in the least sensitive, until one is within the budget."""
    asked = search(lambda r: 0.02 * (len(r.int4_layers) > 2), [Recipe(), Recipe("int8-dynamic")])
    fours = [set(recipe.int4_layers) for recipe in asked if recipe.int4_layers]
    assert fours[0] == {"l0", "l1", "l2", "l4", "l5"}
    assert fours[1] == {"l1", "l2", "l4"}
    assert fours[2:] == [{"l1", "l4"}]
    assert all(recipe.rounding == "gptq" for recipe in asked if recipe.int4_layers)


def test_kind_that_loses_too_much_by_8_bits_is_not_tried_with_4():
    """Only kinds within the budget get 4-bit layers: here dynamic int8 and not static int8."""
    asked = search(lambda r: 0.05 if r.precision == "int8" else 0.0)
    assert {recipe.precision for recipe in asked if recipe.int4_layers} == {"int8-dynamic"}


def test_target_that_runs_8_bit_integers_only_gets_no_mixtures():
    """An Edge TPU refuses float layers and 4-bit weights, so only ranges and equalization are tried, without scores."""
    asked = search(lambda r: 0.05, [Recipe("int8")], layers=None)
    assert len(asked) > 1
    assert not any(recipe.float_layers or recipe.int4_layers for recipe in asked)


def test_sensitive_layers_go_back_to_float_where_int8_loses_too_much():
    """The most sensitive layers become float first, twice as many each time, until the budget is met."""
    asked = search(lambda r: 0.05 if r.precision == "int8" and len(r.float_layers) < 2 else 0.0)
    assert [recipe.float_layers for recipe in asked if recipe.float_layers] == [("l0",), ("l0", "l1")]
    assert any(recipe.ranges == "percentile" for recipe in asked)
    assert any(recipe.equalize and recipe.correct_bias for recipe in asked)


def test_deep_networks_get_several_exceptions_at_once():
    """Of 32 layers, 4 stay float first, then twice as many each time, as long as a layer is left to quantize."""
    layers = [Sensitivity(Layer(f"l{i}", "Gemm", weights=10, macs=10, four_bit=False), 0.1, None) for i in range(32)]
    asked = search(lambda r: 0.02 if r.quantized else 0.0, KINDS[:2], layers)
    assert [len(recipe.float_layers) for recipe in asked if recipe.float_layers] == [4, 8, 16]


def test_every_kind_that_misses_the_budget_gets_exceptions():
    """Mixtures of all kinds are made in one batch; those with the largest possible saving come first."""
    kinds = [Recipe("float16"), Recipe("int8"), Recipe("int8-dynamic"), Recipe("int8-weights")]
    asked = search(lambda r: 0.05 * (r.quantized and len(r.float_layers) < 2), kinds)
    found = [(r.precision, len(r.float_layers)) for r in asked if r.float_layers]
    order = ("int8-weights", "int8-dynamic", "int8")
    assert found == [(kind, 1) for kind in order] + [("int8-weights", 3), ("int8-dynamic", 2), ("int8", 2)]


def test_layers_go_back_to_float_by_what_their_kind_rounds():
    """Static int8 is ordered by the 8-bit score; integer weights are ordered by the 4-bit score."""
    kinds = [Recipe("float16"), Recipe("int8"), Recipe("int8-weights")]
    some = [score for score in LAYERS if score.int4 is not None]
    asked = search(lambda r: 0.05 * r.quantized, kinds, some)
    first = {recipe.precision: recipe.float_layers for recipe in asked[::-1] if recipe.float_layers}
    assert first == {"int8": ("l0",), "int8-weights": ("l0", "l5", "l2")}  # a fifth of the loss may be left


def test_rounded_weights_keep_small_lossy_layers_in_float():
    """Where only weights are rounded, the layers with the largest loss per weight go back to float first."""
    sizes = (600, 10, 300, 10)
    layers = [
        Sensitivity(Layer(f"l{i}", "Conv", size, 1000, four_bit=True), 0.0, loss)
        for i, (size, loss) in enumerate(zip(sizes, (0.5, 0.4, 0.1, 0.3), strict=True))
    ]
    asked = search(lambda r: 0.02 * r.quantized, [Recipe("float16"), Recipe("int8-weights")], layers)
    assert [recipe.float_layers for recipe in asked if recipe.float_layers] == [("l1", "l3"), ("l1", "l3", "l0")]


def test_kind_that_no_aim_would_take_gets_no_exceptions():
    """No mixture of dynamic int8 is made where static int8 is within the budget, cheaper and no larger."""
    kinds = [Recipe("float16"), Recipe("int8"), Recipe("int8-dynamic")]
    asked = search(lambda r: 0.05 * (r.precision == "int8-dynamic"), kinds)
    assert not any(recipe.float_layers for recipe in asked)


def test_exceptions_that_outgrow_the_best_are_not_made():
    """No mixture is made where one float layer would make it larger than half precision."""
    heavy = [
        Sensitivity(Layer(f"l{i}", "Conv", 10 + 995 * (i == 1), 1000, False), 0.1 / (i + 1), None) for i in range(6)
    ]
    asked = search(lambda r: 0.0125 * r.quantized, [Recipe("float16"), Recipe("int8-weights")], heavy)
    found = [recipe.float_layers for recipe in asked if recipe.float_layers]
    assert found == [("l0", "l2"), ("l0", "l2", "l3", "l4", "l5")]


def test_what_is_not_felt_is_not_repaired():
    """An int8 kind near the float model gets no other ranges and no float layers, only fewer bits."""
    asked = search(lambda r: NEGLIGIBLE / 2 if r.quantized else 0.0)
    assert not any(r.float_layers or r.equalize or r.ranges != "minmax" for r in asked)
    assert any(r.int4_layers for r in asked)


def test_nothing_more_is_made_where_nothing_can_be_quantized():
    """Where every int8 kind fails, no sensitivity is computed."""
    world = World(lambda r: None if r.quantized else 0.0)
    Search(world, budget=Budget()).run(KINDS, lambda: [][0])
    assert world.asked == KINDS


def test_work_is_bounded_where_nothing_ever_fits():
    """With many layers and none good enough, at most `MAX_CANDIDATES` candidates are made."""
    layers = [Sensitivity(Layer(f"m{i}", "Conv", 10, 10, four_bit=True), float(i), float(i)) for i in range(5000)]
    kinds = [Recipe(precision) for precision in ("float32", "float16", "int8", "int8-dynamic", "int8-weights")]
    assert len(search(lambda r: 0.5, kinds, layers)) > 15


def test_rounding_keeps_what_fits_the_grid_and_clips_where_that_is_nearer():
    """Multiples of the scale stay; in 4 bits, one large weight is clipped where the others gain by it."""
    whole = np.array([[7, -3, 1], [2, 0, -7]], np.float32)
    np.testing.assert_array_equal(rounded(whole, 0, 7), whole)
    far = np.r_[np.full(200, 0.55), 7.0].astype(np.float32)[None]
    assert rounded(far, 0, 7).max() < 7.0
    assert not rounded(np.zeros((2, 3), np.float32), 0, 7).any()


def test_sensitivity_finds_the_layer_that_cannot_be_quantized():
    """A layer with outlier weights loses most, and every layer loses more with 4 bits than with 8."""
    graph = canonical(residual().model, "test")
    for tensor in graph.model.graph.initializer:
        if tensor.name == "c3.w":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:, 0, 0, 0] *= 300.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "c3.w"))
    samples = Samples({"x": np.random.default_rng(1).normal(0, 1, (40, 3, 16, 16)).astype(np.float32)}, None)
    found = list(
        sensitivities(
            graph,
            layers_of(graph),
            samples,
            calibrate(graph, samples),
            ("y", ["y"]),
            float_answers(graph, samples, layers_of(graph)),
        )
    )
    assert [score.layer.name for score in found] == [layer.name for layer in layers_of(graph)]
    assert max(found, key=lambda score: score.int8).layer.name == "c3"
    assert all(score.int4 is None or score.int4 >= 0.0 for score in found)
    assert sum(score.int4 for score in found if score.int4) > sum(score.int8 for score in found)


def test_conversion_tries_mixtures_and_says_what_became_of_each(tmp_path):
    """A conversion by size has candidates with 4-bit layers, each with a verdict and a reason."""
    models.saved(models.classifier(), tmp_path / "model.onnx")
    models.labelled_data(tmp_path / "data.npz")
    [report] = convert(
        tmp_path / "model.onnx",
        targets=["raspberry-pi-5"],
        runtime="onnxruntime",
        data=tmp_path / "data.npz",
        aim="size",
        output=tmp_path,
    )
    mixed = [c for c in report.candidates if c.recipe.int4_layers]
    assert mixed
    assert len(report.candidates) <= MAX_CANDIDATES
    assert all(c.verdict and c.reason for c in report.candidates)
