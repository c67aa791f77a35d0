import json
import subprocess
import sys

import numpy as np
import pytest

from converters import convert
from converters.frontends import load_model
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.errors import UnsupportedOpError
from edgekit.runtimes import open_runtime

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def bundles(keras_folder, tmp_path_factory):
    """One conversion for two targets."""
    out = tmp_path_factory.mktemp("bundles")
    reports = convert(
        keras_folder / "tiny.keras",
        targets=["raspberry-pi-4", "jetson-orin"],
        data=keras_folder / "data.npz",
        test=keras_folder / "test.npz",
        output=out,
    )
    return {report.target: report for report in reports}, out


def test_both_targets_get_candidates_of_each_kind(bundles):
    """Float, half-precision and int8 candidates are made and measured for each target."""
    for report in bundles[0].values():
        assert {"float32", "float16", "int8"} <= {c.recipe.precision for c in report.candidates}
        whole = [c for c in report.candidates if not c.recipe.lossy]  # a pruned layer may be too narrow for int8
        assert all(c.verdict != "failed" and c.quality and c.drop.n == 300 for c in whole)
        assert report.test.n == 100


def test_every_candidate_passes_its_self_test(keras_folder, tmp_path, child):
    """Each precision alone gives a LiteRT bundle that passes its self-test and keeps the float interface."""
    from edgekit.bundle.recipe import PRESETS
    from edgekit.bundle.targets import builtin_targets

    for name, recipe in PRESETS.items():
        if name not in builtin_targets()["raspberry-pi-4"].precisions:
            continue
        plan = make_plan(
            keras_folder / "tiny.keras",
            ConversionOptions(
                targets=["raspberry-pi-4"],
                data=keras_folder / "data.npz",
                recipe=recipe,
                accept_unproven=True,
                max_drop=0.1,
                name=name,
                output=tmp_path,
            ),
        )
        run_plan(plan, child=child)
        folder = tmp_path / f"{name}-1.0.0-raspberry-pi-4"
        manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
        runtime = open_runtime(manifest, folder)
        assert self_test(runtime, manifest, (folder / "golden.npz").read_bytes()).passed
        answers = runtime.run({"image": np.load(keras_folder / "test.npz")["x"][:3]})["scores"]
        assert (answers.dtype, answers.shape) == (np.float32, (3, 3))
        assert manifest.inputs[0].artifact.dtype == ("int8" if name == "int8" else "float32")
        runtime.close()


def test_interface_is_kerass(bundles):
    """Both runtimes have the Keras model's names, channel-last layout and free batch."""
    for target in bundles[0]:
        manifest = parse_manifest((bundles[1] / f"tiny-1.0.0-{target}" / MANIFEST_NAME).read_bytes())
        assert [(b.spec.name, b.spec.shape) for b in manifest.inputs] == [("image", (None, 12, 12, 1))]
        assert [(b.spec.name, b.spec.shape) for b in manifest.outputs] == [("scores", (None, 3))]


def test_report_tells_parity_of_every_step(bundles):
    """The report has the parity of reading, simplifying and each candidate, on each runtime."""
    report = json.loads((bundles[1] / "tiny-1.0.0-raspberry-pi-4" / "report.json").read_bytes())
    assert report["source"]["format"] == "keras"
    names = [entry["runtime"] for entry in report["parity"]]
    assert names[0] == "read keras"
    assert {"LiteRT float32", "LiteRT float16", "LiteRT int8"} <= set(names)
    whole = [one for one in report["parity"] if "float32" in one["runtime"] and "kept" not in one["runtime"]]
    assert all(one["max_abs"] < 1e-4 for one in whole)


WHOLE = """
import sys
from converters import convert
assert convert(sys.argv[1], targets=["server"], output=sys.argv[2])
print(sorted({"tensorflow", "keras", "tf2onnx"} & set(sys.modules)))
"""


def test_tensorflow_never_enters_the_process_that_converts(keras_folder, tmp_path):
    """After a whole conversion it has not imported TensorFlow, Keras or tf2onnx."""
    command = [sys.executable, "-c", WHOLE, str(keras_folder / "tiny.keras"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


@pytest.mark.parametrize("name", ["tiny.h5", "tiny_saved"])
def test_other_formats_answer_as_the_keras_file(name, keras_folder, child):
    """.h5 and SavedModel become the same graph, and agree with the outputs of their own framework."""
    x = {"image": np.load(keras_folder / "test.npz")["x"][:8]}
    expected = load_model(keras_folder / "tiny.keras", child).answers(x)["scores"]
    source = load_model(keras_folder / name, child)
    [found] = source.graph.run({source.graph.inputs[0].name: x["image"]}).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    [own] = source.answers({source.graph.inputs[0].name: x["image"]}).values()
    np.testing.assert_allclose(own, expected, atol=1e-6)


def test_sequential_model_keeps_its_names(keras_folder, child):
    """A Sequential model's interface has the names of its Input and its last layer."""
    source = load_model(keras_folder / "sequential.keras", child)
    assert [spec.name for spec in source.graph.inputs] == ["image"]
    assert [spec.name for spec in source.graph.outputs] == ["last"]


def test_several_inputs_and_outputs_keep_their_order(keras_folder, child, tmp_path):
    """Two inputs and two outputs of a shared layer are not confused, on both runtimes."""
    plan = make_plan(
        keras_folder / "siamese.keras", ConversionOptions(targets=["raspberry-pi-4", "server"], output=tmp_path)
    )
    run_plan(plan, child=child)
    rng = np.random.default_rng(0)
    x = {name: rng.random((2, 3)).astype(np.float32) for name in ("left", "right")}
    expected = load_model(keras_folder / "siamese.keras", child).answers(x)
    assert list(expected) == ["shared", "shared_1"]
    for target in ("raspberry-pi-4", "server"):
        folder = tmp_path / f"siamese-1.0.0-{target}"
        runtime = open_runtime(parse_manifest((folder / MANIFEST_NAME).read_bytes()), folder)
        found = runtime.run(x)
        runtime.close()
        for name, answer in expected.items():
            np.testing.assert_allclose(found[name], answer, atol=1e-5)


def test_exact_gelu_is_read(keras_folder, child):
    """TensorFlow writes gelu with Erfc, which ONNX lacks; the graph still gives the outputs of Keras."""
    x = {"flat": np.linspace(-4, 4, 20, dtype=np.float32).reshape(5, 4)}
    source = load_model(keras_folder / "gelu.keras", child)
    np.testing.assert_allclose(source.graph.run(x)["gelu"], source.answers(x)["gelu"], atol=1e-5)


def test_operator_that_litert_cannot_take_is_named(keras_folder, child, tmp_path):
    """LiteRT refuses a determinant with its operator and layer; ONNX Runtime gets an artifact."""
    plan = make_plan(keras_folder / "determinant.keras", ConversionOptions(targets=["raspberry-pi-4"], output=tmp_path))
    with pytest.raises(UnsupportedOpError) as caught:
        run_plan(plan, child=child)
    assert caught.value.op == "Det"
    assert caught.value.layer.endswith("MatrixDeterminant")
    plan = make_plan(
        keras_folder / "determinant.keras",
        ConversionOptions(targets=["raspberry-pi-4"], runtime="onnxruntime", output=tmp_path),
    )
    assert run_plan(plan, child=child)[0].chosen == "float32"


def test_layers_of_keras_2_with_groups_are_read(keras_folder, child):
    """Keras 2 wrote `groups` for depthwise, separable and transposed convolutions in .h5; it is accepted."""
    source = load_model(keras_folder / "groups.h5", child)
    x = {"old": np.random.default_rng(0).random((3, 8, 8, 2)).astype(np.float32)}
    np.testing.assert_allclose(source.graph.run(x)["up"], source.answers(x)["up"], atol=1e-5)


def test_a_normalization_layer_holds_constants(keras_folder, child):
    """Mean and variance are plain tensors of the model; they become constants, not inputs."""
    source = load_model(keras_folder / "standardized.keras", child)
    assert [spec.name for spec in source.graph.inputs] == ["flat"]
    x = np.random.default_rng(0).normal(2, 3, (5, 4)).astype(np.float32)
    (name,) = (spec.name for spec in source.graph.outputs)
    np.testing.assert_allclose(source.graph.run({"flat": x})[name], source.answers({"flat": x})[name], atol=1e-5)


GROUPED = """
import sys
import keras
keras.utils.set_random_seed(1)
given = keras.Input((8, 8, 4), name="x")
inner = keras.layers.Conv2D(4, 3, groups=4, padding="same")(given)
inner = keras.layers.Conv2D(8, 3, groups=2, activation="relu")(inner)
model = keras.Model(given, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inner)))
model.save(sys.argv[1]) if sys.argv[1].endswith(".keras") else model.export(sys.argv[1])
"""


@pytest.mark.parametrize("name", ["m.keras", "folder"])
def test_grouped_convolutions_are_read(name, tmp_path, child):
    """Keras compiles them by XLA, as a call that ONNX does not have; they become grouped convolutions of ONNX."""
    path = tmp_path / name
    subprocess.run([sys.executable, "-c", GROUPED, str(path)], check=True, capture_output=True)
    source = load_model(path, child)
    x = {"x": np.random.default_rng(1).normal(0, 1, (3, 8, 8, 4)).astype(np.float32)}
    for name, answers in source.answers(x).items():
        np.testing.assert_allclose(source.graph.run(x)[name], answers, atol=1e-5)
    assert sorted(node.op_type for node in source.graph.nodes).count("Conv") == 2
