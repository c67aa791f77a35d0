"""Conversion with recovery of pruned graphs, from file to bundle."""

import hashlib

import msgspec
import numpy as np
import pytest

from converters import convert
from converters.cache import Cache
from converters.data.samples import Samples, split_samples
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.recipe import DISTILLED, OWN, Recipe
from edgekit.errors import RecipeError, SettingsError
from tests.simulators import models
from tests.simulators.channel_models import mobile
from tests.simulators.pruning_models import STRUCTURES

pytestmark = pytest.mark.heavy
LOOPS = "tests.converters.training.own_loops"
HOW = {"targets": ["raspberry-pi-5"], "runtime": "onnxruntime", "prune": "0.5", "max_drop": 0.9}
BUNDLE = "mobile-1.0.0-raspberry-pi-5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small MobileNet, and images for it."""
    folder = tmp_path_factory.mktemp("recovery")
    models.saved(mobile(20, 20), folder / "mobile.onnx")
    models.labelled_data(folder / "data.npz", rows=600)
    return folder


@pytest.fixture(scope="module")
def failed(folder, tmp_path_factory):
    """A conversion whose training loop fails: the report, the bundle, and the notes to the user."""
    out, notes = tmp_path_factory.mktemp("failed"), []
    [report] = convert(
        folder / "mobile.onnx", **HOW, data=folder / "data.npz", output=out, finetune=f"{LOOPS}:failing",
        on_note=notes.append,
    )  # fmt: skip
    return report, out / BUNDLE, notes


def test_error_of_the_loop_ends_its_candidates_only(failed):
    """Candidates of the user's loop fail with its message; the others are made, and one is chosen."""
    report, _, notes = failed
    message = f"the training loop {LOOPS}:failing failed: ValueError: no such optimizer: adamm"
    assert any(note.endswith(f": {message}") for note in notes)
    own = [candidate for candidate in report.candidates if candidate.recipe.own]
    assert own
    for candidate in own:
        assert candidate.verdict == "failed"
        assert candidate.reason == message
        assert "-own-" in candidate.id
    assert report.chosen_candidate.verdict == "chosen"
    assert len(own) < len(report.candidates)


def test_report_says_what_recovery_did(failed):
    """Each level has its steps with the divergence before and after, and notes; the page shows them."""
    report, bundle, _ = failed
    steps = [step for point in report.channels.curve for step in point.recovery]
    distilled = [step for step in steps if step.step == DISTILLED]
    assert distilled
    assert all(step.taken == (step.after < step.before) for step in distilled)
    assert next(step.note for step in steps if step.step == OWN).endswith("no such optimizer: adamm")
    page = (bundle / "report.html").read_text()
    assert "no such optimizer: adamm" in page
    assert "distilled" in page


def test_recovery_reads_the_calibration_split_only(folder, tmp_path, monkeypatch):
    """With other rows to choose and prove by, the artifacts are the same; the loop sees calibration rows only."""
    data = np.load(folder / "data.npz")
    split = split_samples(Samples({"x": data["x"]}, data["y"]))
    calibration = split.calibration
    last = max(hashlib.sha256(row.tobytes()).digest() for row in calibration.inputs["x"])
    x, y = models.patterns(1200, seed=77)
    later = [index for index, row in enumerate(x) if hashlib.sha256(row.tobytes()).digest() > last][:480]
    x, y = np.concatenate([calibration.inputs["x"], x[later]]), np.array([*calibration.labels, *y[later]])
    np.savez(tmp_path / "other.npz", x=x, y=y)
    made = []
    for name in (folder / "data.npz", tmp_path / "other.npz"):
        out = tmp_path / name.stem
        monkeypatch.setenv("EDGEKIT_TEST_ROWS", str(tmp_path / "rows.npz"))
        options = {**HOW, "data": name, "output": out, "seed": 3, "finetune": f"{LOOPS}:better"}
        [report] = convert(folder / "mobile.onnx", **options)
        curve = [(point.divergence, point.recovery) for point in report.channels.curve]
        made.append((report.chosen_candidate.recipe, (out / BUNDLE / "model.onnx").read_bytes(), curve))
    assert made[0] == made[1]
    seen = np.load(tmp_path / "rows.npz")
    held = np.arange(len(calibration)) % 5 == 4
    np.testing.assert_array_equal(seen["x"], calibration.inputs["x"][~held])
    np.testing.assert_array_equal(seen["labels"], calibration.labels[~held])
    assert seen["seed"] == 3


def test_interrupted_conversion_gives_the_same_bytes(tmp_path):
    """From a half-full cache, and from the recipe alone, the file is the same as without any interruption."""
    net, output = STRUCTURES["plain"]()
    models.saved(net.model(output), tmp_path / "mobile.onnx")
    np.savez(tmp_path / "data.npz", x=net.x(400))
    given = {"targets": ["raspberry-pi-5"], "data": tmp_path / "data.npz", "prune": "0.4", "max_drop": 0.9}
    cache = Cache(tmp_path / "cache")
    options = ConversionOptions(**given, output=tmp_path / "one", aim="size")
    [report] = run_plan(make_plan(tmp_path / "mobile.onnx", options), cache=cache)
    recipe = report.chosen_candidate.recipe
    assert DISTILLED in recipe.recovery
    wanted = (tmp_path / "one" / BUNDLE / "model.tflite").read_bytes()
    assert parse_manifest((tmp_path / "one" / BUNDLE / MANIFEST_NAME).read_bytes()).recipe == recipe
    for number, entry in enumerate(sorted((tmp_path / "cache").glob("*/*"))):
        if number % 2:  # as if the run had been interrupted
            entry.unlink()
    options = ConversionOptions(**given, output=tmp_path / "two", aim="size")
    [again] = run_plan(make_plan(tmp_path / "mobile.onnx", options), cache=cache)
    assert again.candidates == report.candidates
    assert again.channels == report.channels
    assert (tmp_path / "two" / BUNDLE / "model.tflite").read_bytes() == wanted
    alone = msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe)
    given = {"targets": given["targets"], "data": given["data"], "max_drop": 0.9, "recipe": alone}
    convert(tmp_path / "mobile.onnx", **given, output=tmp_path / "three")
    assert (tmp_path / "three" / BUNDLE / "model.tflite").read_bytes() == wanted


def test_wrong_loops_are_told_before_any_work(folder, tmp_path):
    """A name without a colon, a loop without data or pruning, and a function that is missing are refused."""
    given = {**HOW, "output": tmp_path, "data": folder / "data.npz"}
    for changed, reason in (
        ({"finetune": "train"}, "finetune is 'train', expected module:function"),
        ({"finetune": "a:b", "prune": "dead"}, "prune is dead"),
        ({"finetune": "a:b", "data": None}, "there is no data"),
        ({"finetune": "a:b", "prune": "auto", "recipe": Recipe()}, "recovery has no 'own'"),
    ):
        with pytest.raises(SettingsError, match=reason):
            convert(folder / "mobile.onnx", **{**given, **changed})
    for name, reason in (("missing", "has no attribute 'missing'"), ("NO_FUNCTION", "is a int, expected a function")):
        with pytest.raises(SettingsError, match=reason):
            convert(folder / "none.onnx", **given, finetune=f"{LOOPS}:{name}")
    recipe = Recipe(prune="channels", kept=(("a", "0-3"),), recovery=(OWN,))
    with pytest.raises(RecipeError, match="training loop of the user, and none is given"):
        convert(folder / "mobile.onnx", **{**given, "prune": "auto"}, recipe=recipe)
