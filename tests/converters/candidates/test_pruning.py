"""Conversion of models with dead channels, from file to bundle."""

import json

import numpy as np
import onnx
import pytest

from converters import convert
from converters.backends import ConversionContext
from converters.candidates.strategy import pruned_kinds
from converters.cost.estimate import memory_mib
from converters.data.samples import Samples, split_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.passes.channels.dead_channels import LEAST_ROWS
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.errors import CalibrationError, RecipeError, SettingsError
from edgekit.runtimes import open_runtime
from tests.simulators import models
from tests.simulators.channel_models import mobile

LIVE, WIDTH, LAYERS = 6, 48, 5
HOW = {"targets": ["raspberry-pi-5"], "runtime": "onnxruntime"}
DEAD = {**HOW, "prune": "dead"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small MobileNet with 42 dead channels of 48 per layer on ordinary images, and such images."""
    folder = tmp_path_factory.mktemp("dead")
    models.saved(mobile(LIVE, WIDTH), folder / "mobile.onnx")
    models.labelled_data(folder / "data.npz", rows=600)
    return folder


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """The conversion of this model for a Raspberry Pi."""
    out = tmp_path_factory.mktemp("bundles")
    reports = convert(folder / "mobile.onnx", **DEAD, data=folder / "data.npz", output=out)
    return reports[0], out / "mobile-1.0.0-raspberry-pi-5"


def test_dead_channels_go_and_the_file_shrinks_several_times(done):
    """Pruned candidates have the same proven quality with less bytes and cost; unpruned float stays a candidate."""
    report, _ = done
    by_id = {candidate.id: candidate for candidate in report.candidates}
    assert [name for name in by_id if "pruned" not in name] == ["float32"]
    assert by_id["float32-pruned"].bytes < by_id["float32"].bytes / 3
    assert by_id["float32-pruned"].cost.value < by_id["float32"].cost.value / 3
    assert by_id["float32-pruned"].quality.value == by_id["float32"].quality.value
    assert by_id["float32-pruned"].drop.value == 0.0
    assert report.proven
    assert report.chosen_candidate.recipe.pruned


def test_report_counts_what_went(done):
    """The report counts dead channels per layer, the samples, and the bounds for other inputs."""
    _, folder = done
    found = json.loads((folder / "report.json").read_bytes())["pruning"]
    assert (found["channels"], found["measured"], found["proven"]) == (LAYERS * WIDTH + 3, LAYERS * (WIDTH - LIVE), 0)
    assert found["rows"] == 120
    assert found["upper"] == pytest.approx(1 - 0.05 ** (1 / 120))
    assert (found["others"]["rows"], found["others"]["woke"]) == (480, 0)
    assert [layer["measured"] for layer in found["layers"]] == [WIDTH - LIVE] * LAYERS
    page = (folder / "report.html").read_text()
    assert "210 of 243 channels are 0 on all 120 calibration samples" in page
    assert "The chosen artifact is without them." in page


def test_pruned_bundle_passes_its_self_test(done):
    """Golden answers are those of the float model with all channels; the recipe is in the manifest."""
    report, folder = done
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    runtime = open_runtime(manifest, folder)
    found = self_test(runtime, manifest, (folder / "golden.npz").read_bytes())
    runtime.close()
    assert found.passed, found.faults
    assert manifest.recipe.pruned
    assert manifest.recipe == report.chosen_candidate.recipe


def test_free_batch_is_pruned_alike(folder, tmp_path):
    """The server's artifact has the same channels removed and keeps the free batch."""
    [report] = convert(folder / "mobile.onnx", targets=["server"], data=folder / "data.npz", output=tmp_path)
    assert report.chosen == "float32-pruned"
    runtime = open_runtime(
        parse_manifest((tmp_path / "mobile-1.0.0-server" / MANIFEST_NAME).read_bytes()),
        tmp_path / "mobile-1.0.0-server",
    )
    x, _ = models.patterns(5)
    expected = canonical(onnx.load(folder / "mobile.onnx"), "test").run({"x": x})
    found = runtime.run({"x": x})
    runtime.close()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_bounded_activations_prove_it_without_any_data(tmp_path):
    """With Relu6 the weights prove channels dead: no candidate has them, and float candidates pass by parity."""
    models.saved(mobile(LIVE, WIDTH, bounded=True), tmp_path / "m.onnx")
    [report] = convert(tmp_path / "m.onnx", **DEAD, output=tmp_path)
    [whole] = convert(tmp_path / "m.onnx", **HOW, output=tmp_path / "whole", prune="none")
    assert report.chosen_candidate.bytes < whole.chosen_candidate.bytes / 3
    assert (report.pruning.proven, report.pruning.measured) == (LAYERS * (WIDTH - LIVE), 0)
    assert "210 of 243 channels are 0 for every input or unused, and were removed." in report.dead_channels
    assert [step.runtime for step in report.parity if step.runtime == "remove-dead-channels"]


def test_prune_none_leaves_all(folder, tmp_path):
    """With prune none, no channels are removed and the usual candidates are made."""
    [report] = convert(folder / "mobile.onnx", **HOW, data=folder / "data.npz", output=tmp_path, prune="none")
    assert not any(candidate.recipe.pruned for candidate in report.candidates)
    assert (report.pruning.measured, report.pruning.rows) == (0, 0)
    assert report.dead_channels == "Dead channels were not searched for."


def test_model_without_dead_channels_is_untouched(tmp_path):
    """A model without dead channels has the same candidates and bytes, and one sentence in the report."""
    models.saved(mobile(WIDTH, WIDTH), tmp_path / "m.onnx")
    models.labelled_data(tmp_path / "data.npz", rows=300)
    given = {"targets": ["jetson-orin"], "data": tmp_path / "data.npz"}
    [looked] = convert(tmp_path / "m.onnx", **given, output=tmp_path / "auto", prune="dead")
    [not_looked] = convert(tmp_path / "m.onnx", **given, output=tmp_path / "none", prune="none")
    assert looked.candidates == not_looked.candidates
    manifests = [(tmp_path / how / "m-1.0.0-jetson-orin" / "model.onnx").read_bytes() for how in ("auto", "none")]
    assert manifests[0] == manifests[1]
    assert looked.dead_channels == "None of 243 channels is dead on 60 calibration samples."


def test_too_few_samples_tell_nothing(folder, tmp_path):
    """With too few samples no measured channel is removed; the report says how many samples are needed."""
    models.labelled_data(tmp_path / "few.npz", rows=5 * LEAST_ROWS - 5)
    [report] = convert(folder / "mobile.onnx", **DEAD, data=tmp_path / "few.npz", output=tmp_path)
    assert not any(candidate.recipe.pruned for candidate in report.candidates)
    assert "too few samples to remove them: 59 are needed (295 in --data)" in report.dead_channels
    with pytest.raises(CalibrationError, match=r"58 calibration samples are too few .* expected at least 59"):
        convert(
            folder / "mobile.onnx",
            **DEAD,
            data=tmp_path / "few.npz",
            output=tmp_path,
            recipe=Recipe("int8", prune="dead"),
        )


def _samples(*parts):
    return Samples({"x": np.concatenate(parts)})


def test_channel_that_wakes_in_the_proof_is_caught(folder, tmp_path):
    """Bright images in the proof split only change decisions, so pruned candidates are not proven."""
    ordinary, bright = models.patterns(400)[0], 300 * models.patterns(100, seed=8)[0]
    late = bright
    for _ in range(5):  # rows that go move the ends of the splits
        proof = {row.tobytes() for row in split_samples(_samples(ordinary, late)).proof.inputs["x"]}
        late = np.stack([row for row in late if row.tobytes() in proof])
    chosen = _samples(ordinary, late)
    split = split_samples(chosen)
    assert split.calibration.inputs["x"].max() < 50 > split.choice.inputs["x"].max()
    np.savez(tmp_path / "data.npz", x=chosen.inputs["x"])
    [report] = convert(
        folder / "mobile.onnx", **DEAD, data=tmp_path / "data.npz", output=tmp_path, metric="agreement", max_drop=0.02
    )
    by_id = {candidate.id: candidate for candidate in report.candidates}
    assert report.chosen == "float32"
    assert by_id["float32-pruned"].verdict == "unproven"
    assert by_id["float32-pruned"].drop.value > 0.02
    assert report.pruning.others.woke == len(late)
    assert (
        f"{len(late)} of {len(split.choice) + len(split.proof)} other samples activated any of them"
        in report.dead_channels
    )


def test_every_kind_is_pruned_and_float_also_is_not():
    """On an integer-only target, unpruned integer kinds are the fallback."""
    kinds = pruned_kinds([Recipe(), Recipe("float16"), Recipe("int8")])
    assert [recipe.id for recipe in kinds] == [
        "float32", "float16", "float32-pruned", "float16-pruned", "int8-pruned",
    ]  # fmt: skip
    assert [recipe.id for recipe in pruned_kinds([Recipe("int8")])] == ["int8", "int8-pruned"]


def test_everything_sees_the_pruned_graph(folder, tmp_path):
    """Pruned recipes use layers, weights and calibration of the pruned graph; other recipes see all channels."""
    graph = canonical(onnx.load(folder / "mobile.onnx"), "test")
    x, _ = models.patterns(LEAST_ROWS)
    context = ConversionContext(graph, graph.with_batch(1), Samples({"x": x}), TensorFlowProcess(), tmp_path)
    plain, pruned = Recipe("int8"), Recipe("int8", prune="dead")
    assert context.prepared(plain, context.fixed) is context.fixed
    for one in (context.fixed, context.graph):
        assert context.prepared(pruned, one).parameters < one.parameters / 3
        assert context.prepared(pruned, one).free_batch == one.free_batch
    first = context.prepared(pruned, context.fixed).nodes[0].output[0]
    counts = [context.calibration_of(recipe, context.fixed).tensors[first].counts.sum() for recipe in (plain, pruned)]
    assert counts[0] == counts[1] * WIDTH // LIVE
    start = context.base_graph(context.fixed, Recipe(prune="dead"))
    assert memory_mib(start, 0) <= memory_mib(context.fixed, 0)
    evened = context.prepared(Recipe("int8", prune="dead", equalize=True, correct_bias=True), context.fixed)
    assert evened.parameters <= start.parameters + 100


def test_recipe_with_prune_needs_data(folder, tmp_path):
    """A pruned recipe needs data."""
    with pytest.raises(RecipeError, match="a pruned recipe needs samples"):
        convert(folder / "mobile.onnx", **DEAD, output=tmp_path, recipe=Recipe(prune="dead"))


def test_prune_takes_three_words_or_a_share(folder, tmp_path):
    """Other words and numbers are refused."""
    for wrong in ("half", "1.5", "0", "nan"):
        with pytest.raises(SettingsError, match=f"prune is '{wrong}', expected auto, dead, none, or a share between"):
            convert(folder / "mobile.onnx", **HOW, output=tmp_path, prune=wrong)


# A conversion with every kind of candidate for LiteRT: about 15 s.
@pytest.mark.heavy
def test_pruned_litert_kinds_hold_what_they_should(folder, tmp_path):
    """Every kind for a Raspberry Pi 4, 4 bits included, is made without dead channels and keeps its quality."""
    [report] = convert(
        folder / "mobile.onnx",
        targets=["raspberry-pi-4"],
        data=folder / "data.npz",
        output=tmp_path,
        aim="size",
        prune="dead",
    )
    kinds = [candidate for candidate in report.candidates if candidate.recipe.pruned]
    assert {candidate.recipe.precision for candidate in kinds} == {
        "float32", "float16", "int8", "int8-dynamic", "int8-weights",
    }  # fmt: skip
    assert not [candidate for candidate in kinds if candidate.verdict == "failed"]
    assert report.chosen_candidate.recipe.pruned
    plain = next(candidate for candidate in report.candidates if candidate.id == "float32")
    assert report.chosen_candidate.bytes < plain.bytes / 3
