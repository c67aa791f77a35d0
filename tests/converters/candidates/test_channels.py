"""Conversion with pruning of channels that are not dead, from file to bundle."""

import hashlib

import msgspec
import numpy as np
import onnx
import pytest

from converters import convert
from converters.backends import ConversionContext, backend_for
from converters.cache import Cache
from converters.candidates.levels import Levels, channel_report, with_base
from converters.data.samples import Samples, split_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.options import ConversionOptions
from converters.passes.channels.dead_channels import layer_channels
from converters.pipeline import run_plan
from converters.plan import make_plan
from converters.pruning.families import NO_RULE
from converters.pruning.kept import numbers_of
from converters.report.report import parse_report
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.readers import too_old
from edgekit.bundle.recipe import CHANNELS, Recipe
from edgekit.bundle.targets import find_target, known_targets
from edgekit.errors import ConversionError, RecipeError, RefusedError, SettingsError
from edgekit.runtimes import open_runtime
from tests.simulators import models
from tests.simulators.channel_models import mobile
from tests.simulators.pruning_models import STRUCTURES, up_by_groups

WIDTH = 24
HOW = {"targets": ["raspberry-pi-5"], "runtime": "onnxruntime"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small MobileNet without dead channels and with many that are of little use, and images for it."""
    folder = tmp_path_factory.mktemp("channels")
    models.saved(mobile(WIDTH, WIDTH), folder / "mobile.onnx")
    models.labelled_data(folder / "data.npz", rows=700)
    return folder


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """The smallest bundle of this model, with its cache."""
    out, cache = tmp_path_factory.mktemp("bundles"), Cache(tmp_path_factory.mktemp("cache"))
    options = ConversionOptions(**HOW, data=folder / "data.npz", output=out, aim="size")
    [report] = run_plan(make_plan(folder / "mobile.onnx", options), cache=cache)
    return report, out / "mobile-1.0.0-raspberry-pi-5", cache


def test_pruned_candidate_is_chosen_and_proven(done):
    """A smaller file than any unpruned one is within the budget, by proof; pruned floats are never "same"."""
    report, _, _ = done
    chosen, plain = report.chosen_candidate, [c for c in report.candidates if not c.recipe.pruned]
    assert chosen.recipe.lossy
    assert report.proven
    assert chosen.drop.upper <= 0.01
    assert chosen.bytes < 0.85 * min(candidate.bytes for candidate in plain if candidate.bytes)
    assert not [c for c in report.candidates if c.recipe.lossy and "same answers" in c.reason]
    assert len(report.candidates) <= 2 * len(plain)


def test_report_shows_the_curve_and_each_layer(done):
    """Levels with their candidates, channels before and after, and frozen layers with reasons; the page has them."""
    report, bundle, _ = done
    channels = report.channels
    assert [point.share for point in channels.curve] == sorted({p.share for p in channels.curve}, reverse=True)
    assert all(point.left <= point.share + 0.05 for point in channels.curve)
    made = {name for point in channels.curve for name in point.candidates}
    assert made == {candidate.id for candidate in report.candidates if candidate.recipe.lossy}
    assert channels.layers
    assert all(layer.after < layer.before <= WIDTH for layer in channels.layers)
    assert any("it reaches" in reason for reason in channels.frozen.values())
    assert "later layers were fitted anew" in channels.sentence
    assert parse_report((bundle / "report.json").read_bytes()).channels == channels
    page = (bundle / "report.html").read_text()
    assert page.count("<summary>Pruned channels") == 1
    tied = {layer.name for layer in channels.layers} - {name for name, _ in report.chosen_candidate.recipe.kept}
    assert tied  # depthwise layers, which lose the channels of the layers before them
    assert "it reaches" in page


def test_bundle_passes_its_self_test_and_names_its_channels(done):
    """The manifest says what each layer keeps; devices with an older edgekit are named."""
    _, bundle, _ = done
    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes())
    runtime = open_runtime(manifest, bundle)
    found = self_test(runtime, manifest, (bundle / "golden.npz").read_bytes())
    runtime.close()
    assert found.passed, found.faults
    assert manifest.recipe.prune == CHANNELS
    assert all(numbers_of(text) for _, text in manifest.recipe.kept)
    assert too_old(manifest, {"old": "0.1.0", "new": "0.2.0"}).devices == {"old": "0.1.0"}


def test_recipe_makes_the_same_bytes(folder, done, tmp_path):
    """The recipe of the bundle alone gives the same file; so does the same command from a half-full cache."""
    report, bundle, cache = done
    recipe = report.chosen_candidate.recipe
    given = msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe)
    assert given == recipe
    convert(folder / "mobile.onnx", **HOW, data=folder / "data.npz", output=tmp_path, recipe=given)
    wanted = (bundle / "model.onnx").read_bytes()
    assert (tmp_path / bundle.name / "model.onnx").read_bytes() == wanted
    for number, entry in enumerate(sorted(path for path in cache._folder.glob("*/*"))):
        if number % 2:  # as if the run had been interrupted
            entry.unlink()
    options = ConversionOptions(**HOW, data=folder / "data.npz", output=tmp_path / "again", aim="size")
    [again] = run_plan(make_plan(folder / "mobile.onnx", options), cache=cache)
    assert again.candidates == report.candidates
    assert (tmp_path / "again" / bundle.name / "model.onnx").read_bytes() == wanted


def test_selection_and_fit_read_the_calibration_split_only(folder, tmp_path):
    """With other rows in the choice and proof splits, the same channels stay and the weights are the same."""
    data = np.load(folder / "data.npz")
    split = split_samples(Samples({"x": data["x"]}, data["y"]))
    last = max(hashlib.sha256(row.tobytes()).digest() for row in split.calibration.inputs["x"])
    x, y = models.patterns(1200, seed=77)
    later = [index for index, row in enumerate(x) if hashlib.sha256(row.tobytes()).digest() > last][:560]
    x, y = np.concatenate([split.calibration.inputs["x"], x[later]]), [*split.calibration.labels, *y[later]]
    np.savez(tmp_path / "other.npz", x=x, y=np.array(y))
    made = []
    for name in (folder / "data.npz", tmp_path / "other.npz"):
        out = tmp_path / name.stem
        [report] = convert(folder / "mobile.onnx", **HOW, data=name, output=out, prune="0.7", max_drop=0.9)
        made.append((report.chosen_candidate.recipe, (out / "mobile-1.0.0-raspberry-pi-5/model.onnx").read_bytes()))
    assert made[0] == made[1]


def test_share_is_kept_and_the_budget_judges(folder, tmp_path):
    """`--prune 0.6` keeps 60 % of the cost in every candidate; where that is beyond the budget, nothing is written."""
    given = {**HOW, "data": folder / "data.npz"}
    [report] = convert(folder / "mobile.onnx", **given, output=tmp_path, prune="0.6", max_drop=0.3)
    assert all(candidate.recipe.lossy for candidate in report.candidates)
    assert report.channels.curve[0].left <= 0.6
    with pytest.raises(RefusedError, match="no candidate meets the budget"):
        convert(folder / "mobile.onnx", **given, output=tmp_path / "no", prune="0.35", max_drop=0.001)
    assert not (tmp_path / "no").exists()


def test_without_data_nothing_is_chosen(folder, tmp_path):
    """Without data only dead channels go, and the report says why; a share needs data."""
    [report] = convert(folder / "mobile.onnx", **HOW, output=tmp_path)
    assert not any(candidate.recipe.lossy for candidate in report.candidates)
    assert "without --data, nothing says which other channels matter" in report.channels.sentence
    with pytest.raises(ConversionError, match="without --data"):
        convert(folder / "mobile.onnx", **HOW, output=tmp_path, prune="0.5")
    with pytest.raises(SettingsError, match="a recipe is given"):
        convert(folder / "mobile.onnx", **HOW, output=tmp_path, prune="0.5", recipe=Recipe())


def test_wrong_recipes_are_told():
    """Recipes say what is missing or wrong."""
    for wrong, reason in (
        ({"prune": CHANNELS}, "kept names no layer"),
        ({"kept": (("a", "0-3"),)}, "given without prune"),
        ({"prune": CHANNELS, "kept": (("a", "0:3"),)}, "expected channels as in 0-3,7"),
    ):
        with pytest.raises(RecipeError, match=reason):
            Recipe(**wrong)
    one = Recipe("int8", prune=CHANNELS, kept=(("a", "0-3"),), share=0.5)
    assert one.id.startswith("int8-kept50-")
    assert one.id != msgspec.structs.replace(one, kept=(("a", "0-2,4"),)).id
    assert one.base == Recipe(prune=CHANNELS, kept=(("a", "0-3"),), share=0.5)


# TensorFlow's start takes most of the time: about 15 s.
@pytest.mark.heavy
def test_removed_channels_are_gone_from_every_file(tmp_path):
    """No tensor of any file, of both runtimes and in every precision, has the width that each layer lost."""
    width, profile = 23, find_target("raspberry-pi-4", known_targets())
    graph, x = canonical(mobile(width, width), "test"), models.patterns(80)[0]
    with TensorFlowProcess() as child:
        context = ConversionContext(graph, graph.with_batch(1), Samples({"x": x}), child, tmp_path)
        level = Levels(context, "", tuple(spec.name for spec in graph.outputs), 0).at(0.5, profile, "size", Recipe())
        whole = [name for name, channels in layer_channels(graph).items() if channels == width]
        smaller = layer_channels(context.base_graph(graph, level.base))
        assert all(smaller[name] < width for name in whole)
        for runtime in profile.runtimes:
            backend = backend_for(profile, runtime, context)
            assert len(backend.precisions) >= 4
            for precision in backend.precisions:
                if (runtime, precision) != ("onnxruntime", "int8-dynamic"):  # it has no such kernels for convolutions
                    artifact = backend.build(with_base(Recipe(precision), level.base))
                    assert width not in sizes_in(artifact), (runtime, precision)


def sizes_in(artifact):
    """Every size of every tensor of a file."""
    if artifact.runtime == "onnxruntime":
        made = onnx.load_model_from_string(artifact.data).graph
        return {size for tensor in made.initializer for size in tensor.dims}
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=artifact.data)
    return {size for tensor in interpreter.get_tensor_details() for size in tensor["shape"].tolist()}


def test_a_model_that_cannot_shrink_says_why(tmp_path):
    """The report and the refusal of a share name each layer with its reason."""
    net, output = up_by_groups()
    graph = net.graph(output)
    with TensorFlowProcess() as child:
        context = ConversionContext(graph, graph.with_batch(1), Samples({"x": net.x(40)}), child, tmp_path)
        levels = Levels(context, "", (output,), 0)
        found = channel_report(levels, "auto", Recipe(), [], {})
        assert "No layer of this model can lose channels" in found.sentence
        assert "3 layers keep all channels for reasons that the report gives" in found.sentence
        assert sum("ConvTranspose" in reason for reason in found.frozen.values()) == 1
        profile = find_target("raspberry-pi-5", known_targets())
        with pytest.raises(ConversionError, match="No layer of this model") as raised:
            levels.kinds_at(0.5, profile, "size", [Recipe()])
        assert NO_RULE in raised.value.advice


def test_a_share_out_of_reach_says_how_far_the_model_shrinks(tmp_path):
    """Each layer keeps a channel, and the last one all of them."""
    net, output = STRUCTURES["plain"]()
    graph = net.graph(output)
    with TensorFlowProcess() as child:
        context = ConversionContext(graph, graph.with_batch(1), Samples({"x": net.x(40)}), child, tmp_path)
        levels = Levels(context, "", (output,), 0)
        with pytest.raises(
            ConversionError, match=r"cannot shrink to 1%.*: without .*, \d+% of its parameters are left"
        ):
            levels.kinds_at(0.01, find_target("raspberry-pi-5", known_targets()), "size", [Recipe()])


def test_fault_in_pruning_ends_no_conversion(tmp_path):
    """Where pruning itself fails, the conversion goes on without it and the report says so; a share is refused."""
    graph, x = canonical(mobile(8, 8), "test"), models.patterns(40)[0]
    broken = x[:, :, :5]  # the dense layer does not fit such images
    with TensorFlowProcess() as child:
        context = ConversionContext(graph, graph.with_batch(1), Samples({"x": broken}), child, tmp_path)
        levels = Levels(context, "", tuple(spec.name for spec in graph.outputs), 0)
        profile = find_target("raspberry-pi-5", known_targets())
        assert levels.at(0.5, profile, "size", Recipe()) is None
        assert "pruning failed on this model" in channel_report(levels, "auto", Recipe(), [], {}).note
        with pytest.raises(ConversionError, match="pruning failed on this model"):
            levels.kinds_at(0.5, profile, "size", [Recipe()])
