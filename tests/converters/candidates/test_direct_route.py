"""The direct route to LiteRT: where it is used, where it is not, and that files without parity are refused."""

import subprocess
import sys

import msgspec
import numpy as np
import pytest
from onnx import helper

from converters.backends.tflite.reader import operator_name, operators_of, parse_tflite, weighted_ops
from converters.cache import Cache
from converters.frontends import load_model
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ConversionError, RecipeError
from edgekit.runtimes import open_runtime
from edgekit.runtimes.litert import LiteRTRuntime
from tests.simulators.conv_models import separable
from tests.simulators.models import model_of, saved

pytestmark = pytest.mark.heavy

LONG_SECONDS = 60  # of the whole file: it starts early, see tests/conftest.py

MODELS = """
import sys, numpy as np, keras
from keras import layers
keras.utils.set_random_seed(4)
steps = keras.Input((64, 6), name="steps")
for kind in ("LSTM", "GRU"):
    x = layers.Dense(3, activation="softmax", name="scores")(getattr(layers, kind)(16)(steps))
    keras.Model(steps, x).save(f"{sys.argv[1]}/{kind.lower()}.keras")
x = layers.GRU(16, recurrent_activation="hard_sigmoid")(steps)
keras.Model(steps, layers.Dense(3, name="scores")(x)).save(sys.argv[1] + "/hard.keras")
flat = keras.Input((8,), name="flat")
keras.Model(flat, keras.ops.erf(layers.Dense(4)(flat))).save(sys.argv[1] + "/erf.keras")
image = keras.Input((12, 12, 1), name="image")
x = layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(8, 3, strides=2, activation="relu")(image))
cnn = keras.Model(image, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))
cnn.save(sys.argv[1] + "/cnn.keras")
cnn.export(sys.argv[1] + "/cnn_saved", verbose=False)
import tensorflow as tf
class Halving(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def run(self, x):
        return {"y": tf.while_loop(lambda a: tf.reduce_max(a) > 1, lambda a: (a * 0.5,), (x,))[0]}
halving = Halving()
tf.saved_model.save(halving, sys.argv[1] + "/halving", signatures={"serving_default": halving.run})
np.savez(sys.argv[1] + "/steps.npz", x=np.random.default_rng(3).normal(0, 1, (300, 64, 6)).astype("float32"))
"""


class Telling:
    """TensorFlow's process, which records its calls; with `damage`, its files with loops have other weights."""

    def __init__(self, child, *, damage=False):
        self._child, self._damage, self.asked = child, damage, []

    def call(self, function, **arguments):
        self.asked.append(function)
        found = self._child.call(function, **arguments)
        if self._damage and (function == "direct" or arguments.get("loops")):
            content = weighted_ops(found.data)[-1].content
            other = (-np.frombuffer(content, np.float32)).tobytes()
            assert found.data.count(content) == 1
            return msgspec.structs.replace(found, data=found.data.replace(content, other))
        return found

    def release(self):
        self._child.release()


# TensorFlow starts and saves six networks: about 10 s.
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("direct")
    subprocess.run([sys.executable, "-c", MODELS, str(folder)], check=True, capture_output=True)
    return folder


def converted(folder, child, out, name, *, cache=None, **choices):
    [report] = run_plan(
        make_plan(folder / name, ConversionOptions(targets=["raspberry-pi-4"], output=out, **choices)),
        child=child,
        cache=cache,
    )
    return report


def self_tested(bundle):
    """The bundle's self-test, as the device runs it."""
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    runtime = open_runtime(manifest, bundle)
    try:
        return manifest, self_test(runtime, manifest, (bundle / "golden.npz").read_bytes())
    finally:
        runtime.close()


def test_a_loop_beats_the_unrolled_steps_in_bytes(folder, child, tmp_path):
    """The direct file of an LSTM, a third of the lowered size, is chosen by size and passes the device's self-test."""
    report = converted(folder, child, tmp_path, "lstm.keras", aim="size")
    sizes = {candidate.id: candidate.bytes for candidate in report.candidates}
    assert report.chosen == "float16-direct"
    assert sizes["float16-direct"] < sizes["float16"] / 3
    assert report.route.taken
    assert (report.route.direct.loops[0].steps, report.route.lowered.loops) == (64, ())
    manifest, found = self_tested(tmp_path / "lstm-1.0.0-raspberry-pi-4")
    assert found.passed, found.faults
    assert manifest.recipe.direct
    assert "WHILE" in operators_of((tmp_path / "lstm-1.0.0-raspberry-pi-4" / "model.tflite").read_bytes())


# A conversion that lowers 120 unrolled steps: about 15 s.
def test_the_loop_of_another_source_beats_the_unrolled_steps_in_bytes(child, tmp_path):
    """ONNX models have no converter to LiteRT of their own: their recurrent layers, also two-way ones, become loops."""
    steps, size = 40, 12
    rng = np.random.default_rng(8)
    weights = {
        "w": rng.normal(0, 0.3, (2, 4 * size, 6)).astype(np.float32),
        "r": rng.normal(0, 0.3, (2, 4 * size, size)).astype(np.float32),
        "b": rng.normal(0, 0.3, (2, 8 * size)).astype(np.float32),
        "gru_w": rng.normal(0, 0.3, (1, 3 * size, 2 * size)).astype(np.float32),
        "gru_r": rng.normal(0, 0.3, (1, 3 * size, size)).astype(np.float32),
        "sides": np.array([0, 0, -1], np.int64),
        "last": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r", "b"], ["both"], hidden_size=size, direction="bidirectional"),
        helper.make_node("Transpose", ["both"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "sides"], ["wide"]),
        helper.make_node("GRU", ["wide", "gru_w", "gru_r"], ["", "end"], hidden_size=size, direction="reverse"),
        helper.make_node("Squeeze", ["end", "last"], ["y"]),
    ]
    saved(model_of(nodes, {"x": ["N", steps, 6]}, {"y": ["N", size]}, weights), tmp_path / "both.onnx")
    report = converted(tmp_path, child, tmp_path / "out", "both.onnx", aim="size")
    sizes = {candidate.id: candidate.bytes for candidate in report.candidates}
    assert report.chosen == "float16-direct"
    assert sizes["float16-direct"] < sizes["float16"] / 3
    assert [loop.steps for loop in report.route.direct.loops] == [steps] * 3
    _, found = self_tested(tmp_path / "out" / "both-1.0.0-raspberry-pi-4")
    assert found.passed, found.faults
    # No size is computed in a loop: after one, LiteRT's memory plan would change the packed weights of later layers.
    model = parse_tflite((tmp_path / "out" / "both-1.0.0-raspberry-pi-4" / "model.tflite").read_bytes())
    assert not {operator_name(model, one) for graph in model.subgraphs for one in graph.operators} & {"SLICE", "FILL"}


# A conversion that lowers 64 unrolled steps: about 15 s.
def test_a_loop_is_not_taken_for_speed(folder, child, tmp_path):
    """The cost includes the work of the runtime at each step of a loop."""
    report = converted(folder, child, tmp_path, "lstm.keras", aim="cost")
    costs = {candidate.id: candidate.cost.value for candidate in report.candidates}
    assert costs["float32-direct"] > 2 * costs["float32"]
    assert not report.chosen_candidate.recipe.direct


def test_integers_by_the_direct_route(folder, child, tmp_path):
    """A recipe can set the direct route; 8-bit weights in the loop stay within the bundle's tolerances."""
    recipe = Recipe("int8-dynamic", route="direct")
    report = converted(
        folder,
        child,
        tmp_path,
        "lstm.keras",
        recipe=recipe,
        data=folder / "steps.npz",
        max_drop=1.0,
        accept_unproven=True,
    )
    assert [candidate.id for candidate in report.candidates] == ["int8-dynamic-direct"]
    manifest, found = self_tested(tmp_path / "lstm-1.0.0-raspberry-pi-4")
    assert found.passed, found.faults
    assert manifest.recipe == recipe


def test_what_cannot_be_lowered_goes_directly(folder, child, tmp_path):
    """A GRU with hard gates cannot be lowered; the direct file runs it as a loop."""
    report = converted(folder, child, tmp_path, "hard.keras")
    assert {candidate.recipe.direct for candidate in report.candidates} == {True}
    assert report.route.lowered is None
    assert "Loop" in report.route.reason
    _, found = self_tested(tmp_path / "hard-1.0.0-raspberry-pi-4")
    assert found.passed, found.faults


def test_loop_that_values_end_goes_directly(folder, child, tmp_path):
    """Only TensorFlow's own converter gives LiteRT such a loop; its unknown length counts as one step."""
    report = converted(folder, child, tmp_path, "halving")
    assert {candidate.recipe.direct for candidate in report.candidates} == {True}
    assert "Loop" in report.route.reason
    _, found = self_tested(tmp_path / "halving-1.0.0-raspberry-pi-4")
    assert found.passed, found.faults


@pytest.mark.parametrize("name", ["cnn.keras", "cnn_saved"])
def test_no_better_file_adds_no_candidates(name, folder, child, tmp_path):
    """A CNN has lowered candidates only, and the report says that the direct route was evaluated."""
    report = converted(folder, child, tmp_path, name)
    assert [candidate.id for candidate in report.candidates] == ["float32", "float16", "int8-weights"]
    assert not report.route.taken
    assert abs(report.route.direct.bytes / report.route.lowered.bytes - 1) < 0.02
    page = (tmp_path / report.bundle.rpartition("/")[2] / "report.html").read_text()
    assert "was evaluated and not used: the direct file is no better than the lowered one" in page


def test_operators_that_only_tensorflow_has_end_the_route(folder, child, tmp_path):
    """The error function has no LiteRT operator, so only the lowered file exists; the reason names the operator."""
    report = converted(folder, child, tmp_path, "erf.keras")
    assert not any(candidate.recipe.direct for candidate in report.candidates)
    assert not report.route.taken
    assert "LiteRT has no operators for Erf" in report.route.reason
    with pytest.raises(ConversionError, match=r"direct route, which this model does not have: .* Erf"):
        converted(folder, child, tmp_path / "asked", "erf.keras", recipe=Recipe(route="direct"))


# A conversion that lowers 64 unrolled steps: about 15 s.
def test_a_file_that_is_off_is_dropped(folder, child, tmp_path):
    """A direct file with other weights is no candidate; the reason has the difference."""
    report = converted(folder, Telling(child, damage=True), tmp_path, "lstm.keras", aim="size")
    assert [candidate.id for candidate in report.candidates] == ["float32", "float16", "int8-weights"]
    assert not report.route.taken
    assert "differs by" in report.route.reason


def test_the_look_is_kept(child, tmp_path):
    """A repeated conversion does not call TensorFlow and has the same result."""
    (tmp_path / "source.tflite").write_bytes(child.call("lower", model=separable().with_batch(1).to_bytes()).data)
    cache = Cache(tmp_path / "cache")
    first, again = Telling(child), Telling(child)
    one = converted(tmp_path, first, tmp_path / "one", "source.tflite", cache=cache)
    other = converted(tmp_path, again, tmp_path / "other", "source.tflite", cache=cache)
    assert "lower" in first.asked
    assert again.asked == []
    assert one.route.direct is not None
    assert (one.chosen, one.route) == (other.chosen, other.route)


def test_accelerators_and_other_runtimes_have_no_direct_route(folder, tmp_path):
    """A direct recipe for such a target is refused before any work."""
    for target in ("server", "coral-edgetpu"):
        with pytest.raises(RecipeError, match="direct route"):
            make_plan(
                folder / "lstm.keras",
                ConversionOptions(
                    targets=[target],
                    data=folder / "steps.npz",
                    recipe=Recipe("int8" if "coral" in target else "float32", route="direct"),
                    output=tmp_path,
                ),
            )


def test_a_tflite_source_is_its_own_direct_file(child, tmp_path):
    """The file's operators and answers stay, with the tensor names of artifacts."""
    path, made = tmp_path / "source.tflite", tmp_path / "direct.tflite"
    path.write_bytes(child.call("lower", model=separable().with_batch(1).to_bytes()).data)
    source = load_model(path, child)
    names = [[spec.name for spec in side] for side in (source.graph.inputs, source.graph.outputs)]
    made.write_bytes(source.direct(*names).data)
    assert operators_of(made.read_bytes()) == operators_of(path.read_bytes())
    runtime = LiteRTRuntime(made)
    [given], [answer] = runtime.inputs, runtime.outputs
    assert (given.name, answer.name) == ("input_0", "output_0")
    x = np.random.default_rng(2).normal(0, 1, given.shape).astype(np.float32)
    expected = source.answers({names[0][0]: x})[names[1][0]]
    np.testing.assert_array_equal(runtime.run({"input_0": x})["output_0"], expected)
    runtime.close()


def test_a_tflite_source_in_half_precision_has_a_direct_file_in_float32(child, tmp_path):
    """Weights in half precision become float32, so that every number format can be made of them."""
    from converters.backends import ConversionContext
    from converters.backends.litert import LiteRTBackend

    graph = separable()
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), None, child, tmp_path))
    (tmp_path / "half.tflite").write_bytes(backend.build(Recipe("float16")).data)
    assert "DEQUANTIZE" in operators_of((tmp_path / "half.tflite").read_bytes())
    direct = load_model(tmp_path / "half.tflite", child).direct(["input_0"], ["output_0"])
    assert "DEQUANTIZE" not in operators_of(direct.data)


@pytest.mark.parametrize(
    ("steps", "size", "why"), [(600, 4, "600 steps"), (300, 256, "300 steps of 1048576 bytes of weights")]
)
def test_layers_too_large_to_unroll_stay_loops(child, tmp_path, steps, size, why):
    """Too many steps, or weights that each step would hold again: only the loop is made, and the report says why."""
    rng = np.random.default_rng(8)
    weights = {
        "w": rng.normal(0, 0.1, (1, 4 * size, 3)).astype(np.float32),
        "r": rng.normal(0, 0.02, (1, 4 * size, size)).astype(np.float32),
        "last": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "end"], hidden_size=size),
        helper.make_node("Squeeze", ["end", "last"], ["y"]),
    ]
    saved(model_of(nodes, {"x": ["N", steps, 3]}, {"y": ["N", size]}, weights), tmp_path / "large.onnx")
    report = converted(tmp_path, child, tmp_path / "out", "large.onnx", recipe=Recipe("float16", route="direct"))
    assert report.route.lowered is None
    assert why in report.route.reason
    assert [loop.steps for loop in report.route.direct.loops] == [steps]
    assert report.chosen_candidate.bytes < 5000 + 4 * sum(value.size for value in weights.values())
