import json
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from converters import convert
from converters.calibration.calibrate import Calibration
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from converters.progress import ConversionCallbacks
from edgekit.bundle.golden import read_golden, self_test
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.errors import DataError, ManifestError, NotFoundError, RecipeError, RefusedError, SettingsError
from edgekit.runtimes import open_runtime
from tests.simulators import models
from tests.simulators.conv_models import residual


@pytest.fixture(scope="module")
def jetson(onnx_folder, tmp_path_factory):
    """One conversion for a Jetson, its report and its folder."""
    out = tmp_path_factory.mktemp("bundles")
    [report] = convert(
        onnx_folder / "model.onnx",
        targets=["jetson-orin"],
        data=onnx_folder / "data.npz",
        test=onnx_folder / "test.npz",
        output=out,
        name="shapes",
    )
    return report, out / "shapes-1.0.0-jetson-orin"


def test_bundle_holds_exactly_its_files(jetson):
    """The folder has the six files, and the manifest lists five of them with true digests."""
    _, folder = jetson
    assert sorted(p.name for p in folder.iterdir()) == [
        "golden.npz", "manifest.json", "model.onnx", "reference.json", "report.html", "report.json",
    ]  # fmt: skip
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    from edgekit.bundle.manifest import file_entry

    for entry in manifest.files:
        assert entry == file_entry(entry.path, entry.role, (folder / entry.path).read_bytes())
    assert not [p for p in folder.parent.iterdir() if p != folder]


def test_bundle_passes_its_own_self_test(jetson):
    """The golden rows, run by the device's adapter, are within the manifest's tolerances, and decisions match."""
    _, folder = jetson
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    runtime = open_runtime(manifest, folder)
    found = self_test(runtime, manifest, (folder / "golden.npz").read_bytes())
    runtime.close()
    assert found.passed, found.faults
    assert manifest.golden.samples == found.rows == 16
    assert manifest.golden.decisions_match


def test_golden_answers_are_the_float_models(jetson, onnx_folder):
    """golden.npz holds real rows of the data and the source model's answers."""
    _, folder = jetson
    inputs, outputs = read_golden((folder / "golden.npz").read_bytes())
    rows = {row.tobytes() for row in np.load(onnx_folder / "data.npz")["x"]}
    assert all(row.tobytes() in rows for row in inputs["image"])
    from converters.graph.graph import Graph

    expected = Graph(onnx.load(onnx_folder / "model.onnx")).run(inputs)
    np.testing.assert_allclose(outputs["scores"], expected["scores"], atol=1e-5)


def test_interface_is_the_sources(jetson):
    """Names, dtype, layout and the free batch are those of the source; the artifact has a batch of 1."""
    manifest = parse_manifest((jetson[1] / MANIFEST_NAME).read_bytes())
    assert (manifest.inputs[0].spec.name, manifest.inputs[0].spec.shape) == ("image", (None, 1, 8, 8))
    assert manifest.inputs[0].artifact.shape == (1, 1, 8, 8)
    assert (manifest.task.kind, manifest.task.output, manifest.task.scores) == (
        "classification", "scores", "probabilities",
    )  # fmt: skip


def test_report_has_the_agreed_keys(jetson):
    """report.json has the agreed keys, and the candidates with their verdicts (one channel of this model is dead)."""
    report = json.loads((jetson[1] / "report.json").read_bytes())
    assert set(report) >= {
        "target", "source", "metric", "split", "budget", "float", "candidates", "chosen", "proven", "test", "parity",
        "tools",
    }  # fmt: skip
    assert set(report["budget"]) >= {"max_drop", "confidence", "max_bytes", "max_cost"}
    assert [set(output) >= {"name", "metric", "drop", "judged"} for output in report["outputs"]] == [True]
    assert set(report["worst_class"]) >= {"label", "drop"}
    assert set(report["split"]) == {"digest", "calibration", "choice", "proof"}
    assert [c["id"] for c in report["candidates"] if "kept" not in c["id"]] == [
        "float32", "float16", "float32-pruned", "float16-pruned", "int8-symmetric-pruned",
    ]  # fmt: skip
    for candidate in report["candidates"]:
        assert set(candidate) >= {"id", "recipe", "bytes", "quality", "drop", "cost", "verdict", "reason"}
    assert [c["id"] for c in report["candidates"] if c["verdict"] == "chosen"] == [report["chosen"]]
    assert set(report["test"]) == {"float", "chosen", "n"}
    assert report["split"] == {**report["split"], "calibration": 100, "choice": 100, "proof": 300}
    assert "/" not in report["source"]["path"]


def test_report_tells_how_the_chosen_artifact_runs_elsewhere(jetson):
    """report.json and report.html compare every runtime of this machine with the device's runtime."""
    _, folder = jetson
    written = json.loads((folder / "report.json").read_bytes())["parity"]
    ways = [entry for entry in written if entry["device"] is not None]
    assert len(ways) >= 3
    assert all(entry["runtime"].startswith("ONNX Runtime ") and entry["rows"] == 32 for entry in ways)
    assert all({"runtime", "where", "max_abs", "agreement", "equal"} <= set(entry) for entry in written)
    page = (folder / "report.html").read_text()
    assert "The chosen artifact on every runtime of this machine" in page
    assert all(entry["where"] in page for entry in ways)


def test_page_is_self_contained(jetson):
    """report.html names the chosen candidate and loads no other files."""
    page = (jetson[1] / "report.html").read_text()
    assert jetson[0].chosen in page
    assert "<svg" in page
    assert not any(word in page for word in ("http://", "https://", "src=", "<script", "@import"))


def test_page_escapes_what_users_named(onnx_folder, tmp_path):
    """A hostile file name is escaped in the page."""
    source = tmp_path / "<b>bold<b>.onnx"
    source.write_bytes((onnx_folder / "model.onnx").read_bytes())
    [report] = convert(source, targets=["server"], output=tmp_path, name="safe")
    page = (tmp_path / "safe-1.0.0-server" / "report.html").read_text()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert report.chosen == "float32"


def test_int8_for_tensorrt_is_symmetric_and_per_channel(tmp_path):
    """Every zero point is 0, convolution weights have a scale per channel, biases stay float."""
    onnx.save(residual().model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(0, 1, (60, 3, 16, 16)).astype(np.float32))
    convert(
        tmp_path / "model.onnx",
        targets=["jetson-orin"],
        data=tmp_path / "data.npz",
        recipe=Recipe("int8"),
        accept_unproven=True,
        output=tmp_path,
        max_drop=1.0,
    )
    model = onnx.load(tmp_path / "model-1.0.0-jetson-orin" / "model.onnx")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert nodes
    assert all(not values[n.input[2]].any() and values[n.input[2]].dtype == np.int8 for n in nodes)
    assert any(values[n.input[1]].shape == (32,) for n in nodes)


def test_int8_bundle_keeps_its_calibration(onnx_folder, tmp_path):
    """An int8 bundle carries a small file with every tensor's histogram; a float bundle does not."""
    for recipe in (Recipe("int8"), Recipe("float32")):
        convert(
            onnx_folder / "model.onnx",
            targets=["raspberry-pi-5"],
            runtime="onnxruntime",
            data=onnx_folder / "data.npz",
            recipe=recipe,
            accept_unproven=True,
            output=tmp_path / recipe.id,
            max_drop=1.0,
        )
    folder = tmp_path / "int8" / "model-1.0.0-raspberry-pi-5"
    data = (folder / "calibration.bin").read_bytes()
    assert set(Calibration.from_bytes(data).tensors) >= {"image", "scores"}
    assert len(data) < 4096
    roles = {entry.path: entry.role for entry in parse_manifest((folder / MANIFEST_NAME).read_bytes()).files}
    assert roles["calibration.bin"] == "calibration"
    assert not (tmp_path / "float32" / "model-1.0.0-raspberry-pi-5" / "calibration.bin").exists()


def test_point_estimates_leave_more_samples_for_calibration(onnx_folder, tmp_path):
    """Half of the samples calibrate where a point estimate is accepted and a proof needs few; else a fifth."""
    splits = []
    for accepted in (False, True):
        [report] = convert(
            onnx_folder / "model.onnx",
            targets=["raspberry-pi-5"],
            runtime="onnxruntime",
            data=onnx_folder / "data.npz",
            recipe=Recipe("float32"),
            accept_unproven=accepted,
            output=tmp_path / str(accepted),
            max_drop=0.2,
        )
        split = report.split
        rows = split.calibration + split.choice + split.proof
        splits.append((split.calibration / rows, split.choice / rows))
    assert splits[0] == pytest.approx((0.2, 0.2), abs=0.01)
    assert splits[1] == pytest.approx((0.5 if rows <= 512 else 256 / rows, 0.2), abs=0.01)


def test_a_proof_on_hard_samples_of_devices_says_so(onnx_folder, tmp_path):
    """In notes, report, page and manifest; samples that were kept by chance prove as any others."""
    with np.load(onnx_folder / "data.npz") as data:
        arrays = dict(data)
    rows = len(arrays["y"])
    named = {"targets": ["server"], "recipe": Recipe("float32"), "max_drop": 0.2}
    for name, kept in (("hard", ["random", "unsure", "refuted", "random"]), ("chance", ["random"])):
        np.savez(tmp_path / f"{name}.npz", **arrays, edgekit_reason=np.resize(np.array(kept), rows))
        [report] = convert(
            onnx_folder / "model.onnx", data=tmp_path / f"{name}.npz", output=tmp_path / f"out-{name}", **named
        )
        folder = tmp_path / f"out-{name}" / "model-1.0.0-server"
        manifest, page = parse_manifest((folder / MANIFEST_NAME).read_bytes()), (folder / "report.html").read_text()
        warned = [note for note in report.notes if "were kept by devices as refuted, unsure" in note]
        if name == "chance":
            assert (report.split.hard, manifest.quality.hard, warned) == ({}, msgspec.UNSET, [])
            continue
        assert report.split.hard.keys() == {"refuted", "unsure"}
        assert (
            manifest.quality.hard == sum(report.split.hard.values()) == pytest.approx(report.split.proof / 2, rel=0.2)
        )
        assert warned
        assert "were kept by devices as refuted, unsure" in page
        assert json.loads((folder / "report.json").read_text())["split"]["hard"] == report.split.hard
    np.savez(tmp_path / "odd.npz", **arrays, edgekit_reason=np.array(["random"]))
    with pytest.raises(DataError, match=r"edgekit_reason is .* expected texts of shape"):
        convert(onnx_folder / "model.onnx", data=tmp_path / "odd.npz", output=tmp_path / "out-odd", **named)


def test_onnx_on_a_cpu_target_makes_int8_with_zero_points(onnx_folder, tmp_path):
    """--runtime onnxruntime on a board that runs both: float32, QDQ int8 and integer weights; no float16.

    Convolutions that quantize their inputs as they come are slower than float: that kind is refused, with the reason.
    """
    [report] = convert(
        onnx_folder / "model.onnx",
        targets=["raspberry-pi-5"],
        runtime="onnxruntime",
        data=onnx_folder / "data.npz",
        output=tmp_path,
        prune="none",
    )
    verdicts = {c.id: c.verdict for c in report.candidates}
    assert verdicts.keys() >= {"float32", "int8", "int8-weights"}
    assert "float16" not in verdicts
    assert {name for name, verdict in verdicts.items() if verdict == "failed"} <= {"int8-dynamic"}


def test_server_bundle_keeps_the_free_batch(onnx_folder, tmp_path):
    """The cloud tier's artifact takes any number of rows at once, in float32."""
    [report] = convert(onnx_folder / "model.onnx", targets=["server"], output=tmp_path)
    manifest = parse_manifest((tmp_path / "model-1.0.0-server" / MANIFEST_NAME).read_bytes())
    assert manifest.inputs[0].artifact.shape[0] is None
    assert report.chosen == "float32"


def test_without_data_only_float_is_made_and_it_says_so(onnx_folder, tmp_path):
    """Without samples there is no int8, no quality and no proof, and the page says so."""
    [report] = convert(onnx_folder / "model.onnx", targets=["jetson-orin"], output=tmp_path)
    assert [c.id for c in report.candidates] == ["float32", "float16"]
    assert (report.data, report.split, report.float_.quality, report.proven) == ("random", None, None, False)
    assert "No samples were given" in (tmp_path / "model-1.0.0-jetson-orin" / "report.html").read_text()


def test_labels_that_do_not_fit_are_named(onnx_folder, tmp_path):
    """Of a model that is right less often than its most frequent label, no drop proves anything."""
    from converters.graph.graph import Graph

    arrays = dict(np.load(onnx_folder / "data.npz"))
    answers = Graph(onnx.load(onnx_folder / "model.onnx")).run(
        {"image": next(v for k, v in arrays.items() if k != "y")}
    )
    [scores] = answers.values()
    np.savez(tmp_path / "wrong.npz", **{**arrays, "y": (scores.argmax(1) + 1) % scores.shape[1]})
    notes = []
    options = {"targets": ["jetson-orin"], "output": tmp_path / "out", "prune": "none"}
    [report] = convert(onnx_folder / "model.onnx", data=tmp_path / "wrong.npz", on_note=notes.append, **options)
    assert any("the float model is right on 0% of the proof samples" in note for note in notes)
    assert any("--metric agreement" in note for note in report.notes)


def test_no_candidate_within_budget_writes_nothing(onnx_folder, tmp_path):
    """Where no candidate meets a limit, the error names the nearest one and the output folder is not made."""
    with pytest.raises(RefusedError, match="nearest is"):
        convert(onnx_folder / "model.onnx", targets=["jetson-orin"], output=tmp_path / "out", max_bytes=10)
    assert not (tmp_path / "out").exists()


def test_one_refused_target_leaves_the_bundles_of_the_others(onnx_folder, jetson, tmp_path):
    """The error names the target that gets no bundle; the others get theirs, whatever the order."""
    limit = jetson[0].chosen_candidate.cost.value
    options = {"data": onnx_folder / "data.npz", "output": tmp_path / "out", "max_cost": limit}
    with pytest.raises(RefusedError, match=r"^server: no candidate meets the budget"):
        convert(onnx_folder / "model.onnx", targets=["jetson-orin", "server"], **options)
    [written] = (tmp_path / "out").iterdir()
    assert written.name.endswith("-jetson-orin")


def test_data_that_does_not_fit_writes_nothing(onnx_folder, tmp_path):
    """For samples of another size, both shapes are shown and nothing is written."""
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 1, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"\[9, 1, 4, 4\], expected \[any, 1, 8, 8\]"):
        convert(onnx_folder / "model.onnx", targets=["server"], data=tmp_path / "d.npz", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_converting_again_replaces_the_bundle(onnx_folder, tmp_path):
    """A second run writes the same bundle to the same folder, and no other files."""
    digests = []
    for _ in range(2):
        [report] = convert(onnx_folder / "model.onnx", targets=["server"], output=tmp_path)
        digests.append(parse_manifest((tmp_path / "model-1.0.0-server" / MANIFEST_NAME).read_bytes()).digest)
    assert digests[0] == digests[1]
    assert [p.name for p in tmp_path.iterdir()] == ["model-1.0.0-server"]
    assert report.bundle == str(tmp_path / "model-1.0.0-server")


def test_what_is_no_bundle_is_never_replaced(onnx_folder, tmp_path):
    """A user's folder with the bundle's name is not changed."""
    (tmp_path / "model-1.0.0-server").mkdir()
    (tmp_path / "model-1.0.0-server" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="is not a bundle"):
        convert(onnx_folder / "model.onnx", targets=["server"], output=tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["model-1.0.0-server", "thesis.txt"]


def test_model_that_ends_in_logits_is_known_by_its_labels(tmp_path):
    """Integer labels and no softmax mean classification by logits."""
    model = models.classifier(softmax=False)
    models.saved(model, tmp_path / "m.onnx")
    models.labelled_data(tmp_path / "d.npz")
    convert(tmp_path / "m.onnx", targets=["server"], data=tmp_path / "d.npz", output=tmp_path)
    manifest = parse_manifest((tmp_path / "m-1.0.0-server" / MANIFEST_NAME).read_bytes())
    assert manifest.task.scores == "logits"


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        ({"targets": ["raspberry-pi-44"]}, NotFoundError),
        ({"targets": []}, SettingsError),
        ({"targets": ["server"], "aim": "speed"}, SettingsError),
        ({"targets": ["server"], "confidence": 95}, SettingsError),
        ({"targets": ["server"], "runtime": "litert"}, SettingsError),
        ({"targets": ["server"], "max_drop": float("nan")}, SettingsError),
        ({"targets": ["server"], "max_bytes": 0}, SettingsError),
        ({"targets": ["server"], "version": "1.0"}, ManifestError),
        ({"targets": ["server"], "name": "../up"}, ManifestError),
        ({"targets": ["coral-edgetpu"]}, RecipeError),
        ({"targets": ["server"], "recipe": Recipe("int8")}, RecipeError),
    ],
)
def test_wrong_choices_are_refused_before_any_work(choices, error):
    """Wrong options are reported before the model is opened."""
    with pytest.raises(error):
        convert("nothing.onnx", **choices)


@pytest.mark.heavy
def test_structure_that_a_target_cannot_run_is_refused_with_its_operator(tmp_path, child):
    """Where no candidate can be made at all, nothing is pruned, and the refusal names the target and what it lacks.

    Accelerators are asked first, so that nobody waits to hear of it. The other target gets its bundle.
    """
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["b"], name="first"),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w"], ["c"], name="second"),
        helper.make_node("Sin", ["c"], ["s"], name="sine"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    rng = np.random.default_rng(1)
    shapes = {"v": (32, 1, 3, 3), "w": (8, 32, 3, 3)}
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    models.saved(models.model_of(nodes, {"x": ["n", 1, 8, 8]}, {"y": ["n", 8]}, weights), tmp_path / "m.onnx")
    models.labelled_data(tmp_path / "d.npz", rows=200)
    targets = ["jetson-orin", "coral-edgetpu"]
    options = ConversionOptions(targets=targets, data=tmp_path / "d.npz", accept_unproven=True, output=tmp_path)
    notes, made, reports = [], [], []

    def note(text):
        notes.append((text, list(made)))

    callbacks = ConversionCallbacks(
        found=lambda profile, measured: made.append(profile.name), note=note, reported=reports.append
    )
    with pytest.raises(RefusedError, match=r"^coral-edgetpu: .* does not run on Edge TPU"):
        run_plan(make_plan(tmp_path / "m.onnx", options), callbacks=callbacks, child=child)
    [before] = [made for text, made in notes if text.startswith("no bundle for coral-edgetpu, the other targets go on")]
    assert "jetson-orin" not in before
    assert [report.target for report in reports] == ["jetson-orin"]
    assert (tmp_path / "m-1.0.0-jetson-orin" / MANIFEST_NAME).exists()
    assert not (tmp_path / "m-1.0.0-coral-edgetpu").exists()


LIGHT = """
import sys
from converters import convert
convert(sys.argv[1], targets=["server"], output=sys.argv[2])
print(sorted({"tensorflow", "keras", "tf2onnx", "torch"} & set(sys.modules)))
"""


# A process of its own imports everything and converts: about 10 s.
def test_onnx_conversion_needs_no_tensorflow(onnx_folder, tmp_path):
    """A conversion from ONNX to ONNX imports no TensorFlow and no PyTorch."""
    command = [sys.executable, "-c", LIGHT, str(onnx_folder / "model.onnx"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr


def test_report_survives_a_round_trip(jetson):
    """The returned report equals the written report.json."""
    from converters import Report

    written = msgspec.json.decode((jetson[1] / "report.json").read_bytes(), type=Report)
    assert msgspec.structs.replace(written, bundle=jetson[0].bundle) == jetson[0]


def test_output_that_cannot_be_written_is_told_before_any_work(tmp_path):
    """A file at the path of the output folder is reported before the model is opened."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        convert(tmp_path / "nothing.onnx", targets=["server"], output=tmp_path / "file" / "deep")


def test_disk_that_fills_up_leaves_nothing_behind(onnx_folder, tmp_path):
    """A write that fails half-way is an error and leaves neither a bundle nor temporary files."""
    script = (
        "import resource, sys; from converters import convert; from edgekit.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: convert(sys.argv[1], targets=['server'], output=sys.argv[2])\n"
        "except DataError as error: sys.exit(f'refused: {error}')"
    )
    arguments = [str(onnx_folder / "model.onnx"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=480)
    assert "cannot be written: [Errno 27]" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_target_given_twice_is_made_once(onnx_folder, tmp_path):
    """A target that is given twice has one report."""
    assert len(convert(onnx_folder / "model.onnx", targets=["server", "server"], output=tmp_path)) == 1


def test_cost_counts_recurrent_layers(tmp_path):
    """An LSTM costs its weights once per step: 5 steps of 4 x 3 inputs and 4 x 3 recurrent weights, 3 wide."""
    rng = np.random.default_rng(0)
    node = models.helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=3, name="lstm")
    turn = models.helper.make_node("Transpose", ["image"], ["x"], perm=[1, 0, 2], name="turn")
    out = models.helper.make_node("Squeeze", ["h", "axis"], ["scores"], name="squeeze")
    weights = {
        "w": rng.normal(0, 1, (1, 12, 3)).astype(np.float32),
        "r": rng.normal(0, 1, (1, 12, 3)).astype(np.float32),
        "axis": np.array([0]),
    }
    inputs, outputs = {"image": ["batch", 5, 3]}, {"scores": ["batch", 3]}
    models.saved(models.model_of([turn, node, out], inputs, outputs, weights), tmp_path / "m.onnx")
    [report] = convert(tmp_path / "m.onnx", targets=["server"], output=tmp_path)
    assert report.chosen_candidate.cost.value == 5 * (12 * 3 + 12 * 3)
