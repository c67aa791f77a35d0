"""A repeated conversion does nothing where its inputs have not changed; which changes are noticed."""

import contextlib
import shutil

import numpy as np
import pytest

from converters import convert
from converters.cache import Cache
from converters.options import ConversionOptions
from converters.up_to_date import UP_TO_DATE, ConversionRequest
from tests.simulators import models


@pytest.fixture
def call(tmp_path, onnx_folder):
    """Convert with the same default options in an own folder; returns the reports, the steps and the notes."""
    for name in ("model.onnx", "data.npz"):
        shutil.copy(onnx_folder / name, tmp_path)
    cache = Cache(tmp_path / "cache")

    def call(**choices):
        steps, notes = [], []

        @contextlib.contextmanager
        def step(label):
            steps.append(label)
            yield

        given = {
            "targets": ["server"],
            "data": tmp_path / "data.npz",
            "output": tmp_path / "out",
            "cache": cache,
            "prune": "none",
            **choices,
        }
        return convert(tmp_path / "model.onnx", on_step=step, on_note=notes.append, **given), steps, notes

    return call


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_same_call_again_loads_and_writes_nothing(call, tmp_path):
    """No step runs, the reports are equal, and the bundle's bytes and times have not changed."""
    reports, steps, notes = call()
    assert steps
    assert not notes
    before = contents(tmp_path / "out")
    assert call() == (reports, [], [UP_TO_DATE])
    assert contents(tmp_path / "out") == before


# Two conversions, of which the one for x86-64 starts TensorFlow: about 15 s.
@pytest.mark.parametrize(
    "choices",
    [{"max_drop": 0.02}, {"targets": ["x86-64"]}, {"version": "1.0.1"}, {"test": "data.npz"}, {"cache": None}],
)
def test_other_choices_are_not_the_same(call, tmp_path, choices):
    """Each option counts; without a cache everything is made anew."""
    call()
    if "test" in choices:
        choices = {"test": tmp_path / choices["test"]}
    assert "load model.onnx" in call(**choices)[1]


def test_other_content_of_the_same_file_is_not_the_same(call, tmp_path):
    """Data and model are compared by their bytes; a note says why a bundle was replaced."""
    call()
    models.labelled_data(tmp_path / "data.npz", rows=420, seed=5)
    [_, steps, notes] = call()
    assert "load model.onnx" in steps
    assert [note.partition(": ")[2] for note in notes] == ["it was made from other samples"]
    models.saved(models.classifier(seed=3), tmp_path / "model.onnx")
    assert "another model" in call()[2][0]
    assert call()[2] == [UP_TO_DATE]


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "more", "manifest"])
def test_bundle_that_is_not_whole_is_made_anew(call, tmp_path, damage):
    """A changed, shortened, missing or additional file, or another manifest: the bundle is written again."""
    call()
    [folder] = (tmp_path / "out").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = folder / "model.onnx"
    data = model.read_bytes()
    if damage == "changed":
        model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        model.write_bytes(data[:-1])
    elif damage == "gone":
        model.unlink()
    elif damage == "more":
        (folder / "extra").write_text("x")
    else:
        (folder / "manifest.json").write_bytes(before["manifest.json"].replace(b"1.0.0", b"1.0.9", 1))
    assert "load model.onnx" in call()[1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert call()[1] == []


def test_metric_of_the_users_is_never_the_same(call, tmp_path, monkeypatch):
    """A change in the code of a user's metric cannot be detected."""
    (tmp_path / "own_metric.py").write_text(
        "def score(outputs, labels):\n    return (outputs.argmax(1) == labels) * 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        assert "load model.onnx" in call(metric="own_metric:score")[1]


def test_data_that_change_during_the_work_leave_no_receipt(call, tmp_path):
    """The record would describe data that the conversion did not read."""
    cache = Cache(tmp_path / "cache")
    options = ConversionOptions(targets=["server"], data=tmp_path / "data.npz", output=tmp_path / "out")
    request = ConversionRequest(cache, tmp_path / "model.onnx", options)
    [reports, _, _] = call(cache=None)
    models.labelled_data(tmp_path / "data.npz", rows=420, seed=5)
    request.record(reports)
    assert ConversionRequest(cache, tmp_path / "model.onnx", options).reports() is None
    assert request.reports() is None


def inputs_digest(tmp_path, **choices):
    options = ConversionOptions(**{"targets": ["server"], **choices})
    return ConversionRequest(Cache(tmp_path / "cache"), tmp_path / "model.onnx", options)._digest


def test_folders_count_by_names_and_content_of_their_files(tmp_path):
    """Folders of images and SavedModels, links included; a link to a parent folder does no harm."""
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "two.png").write_bytes(b"2")
    cats = tmp_path / "data" / "cats"
    cats.mkdir(parents=True)
    (cats / "one.png").write_bytes(b"1")
    (tmp_path / "data" / "dogs").symlink_to(tmp_path / "away")
    (cats / "back").symlink_to(tmp_path / "data")
    found = [inputs_digest(tmp_path, data=tmp_path / "data")]
    assert found == [inputs_digest(tmp_path, data=tmp_path / "data")]
    (cats / "one.png").rename(cats / "three.png")
    found.append(inputs_digest(tmp_path, data=tmp_path / "data"))
    (tmp_path / "away" / "two.png").write_bytes(b"3")
    found.append(inputs_digest(tmp_path, data=tmp_path / "data"))
    assert None not in found
    assert len(set(found)) == 3


def test_steps_count_with_the_files_that_they_name(tmp_path):
    """A changed vocabulary file changes the digest, even if the file of steps has not changed."""
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "steps.toml").write_text('[[before]]\nsteps = [{do = "tokenize", vocabulary = "words.txt"}]\n')
    found = []
    for words in ("a\nb\n", "a\nc\n"):
        (tmp_path / "words.txt").write_text(words)
        found.append(inputs_digest(tmp_path, preprocess=tmp_path / "steps.toml"))
    assert None not in found
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        (b"model", {"metric": "module:function"}),
        (b"model", {"targets": ["coral-edgetpu"]}),
        (b"model", {"targets": ["no-such-target"]}),
        (b"model", {"data": "none.npz"}),
        (b"..\x08location..", {}),
    ],
)
def test_what_cannot_be_told_is_no_request(tmp_path, model, choices):
    """User metrics, accelerator targets, weights in other files and faulty inputs have no digest."""
    (tmp_path / "model.onnx").write_bytes(model)
    assert inputs_digest(tmp_path, **choices) is None
    assert inputs_digest(tmp_path) is None or model == b"model"


def test_two_arrays_of_one_file_are_told_apart(tmp_path):
    """The digest covers all arrays of the data file."""
    (tmp_path / "model.onnx").write_bytes(b"model")
    found = []
    for labels in (0, 1):
        np.savez(tmp_path / "data.npz", x=np.zeros((4, 2), np.float32), y=np.full(4, labels))
        found.append(inputs_digest(tmp_path, data=tmp_path / "data.npz"))
    assert found[0] != found[1]
