"""Preprocessing steps: reading, detection, use in the evaluation, and the files in the bundle."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from converters import convert
from converters.data.image_folders import load_folder
from converters.data.preprocessing import choose_steps, detect_steps, read_steps
from converters.data.samples import load_samples
from converters.graph.graph import Graph
from converters.options import ConversionOptions
from converters.plan import make_plan
from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import parse_manifest
from edgekit.bundle.recipe import preset
from edgekit.errors import DataError, RecipeError
from edgekit.preprocess import Processing
from edgekit.serving.oip import codec as oip
from tests.simulators.models import classifier, patterns, saved

STEPS = """
[[before]]
steps = [
  {do = "decode-image", colour = "grey"},
  {do = "resize", height = 8, width = 8, method = "nearest"},
  {do = "scale", by = 0.00392156862745098},
  {do = "layout", to = "CHW"},
]
[[after]]
do = "top-k"
k = 1
labels = "labels.txt"
"""
CLASSES = ("zebra", "across", "board")  # in the model's order, which is not that of the folders' names


def steps_file(folder, text=STEPS):
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "steps.toml").write_text(text)
    return folder / "steps.toml"


def photos(folder, rows=60, seed=3):
    """Patterns as PNG files of 16 by 16 pixels, in one folder per class."""
    images, labels = patterns(rows, seed=seed)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        pixels = (np.clip(image[0], 0, 1) * 255).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(pixels).save(place / f"{row:03d}.png")
    return folder


def processor_of(folder):
    graph = Graph(classifier())
    return read_steps(steps_file(folder)).processor(graph.logical_inputs, graph.logical_outputs)


def raw(*items):
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    data, test = photos(folder / "data", rows=400), photos(folder / "test", rows=40, seed=9)
    (report,) = convert(
        saved(classifier(), folder / "m.onnx"),
        targets=["x86-64"],
        runtime="onnxruntime",
        data=data,
        test=test,
        preprocess=steps_file(folder),
        output=folder / "out",
    )
    return report, folder


async def test_the_accuracy_that_was_measured_is_the_one_that_is_served(bundle):
    """Every test photo sent as bytes to the device's own service: as many right as the report says, by their names."""
    report, folder = bundle
    assert report.preprocess == "steps.toml"
    assert report.test.n == 40
    manifest = parse_manifest((folder / "out" / "m-1.0.0-x86-64" / "manifest.json").read_bytes())
    assert manifest.task.labels == CLASSES
    right = 0
    async with InferenceService() as service:
        await service.activate("m", manifest, folder / "out" / "m-1.0.0-x86-64")
        files = sorted((folder / "test").rglob("*.png"))
        for file in files:
            found = await service.answer("m", None, oip.InferRequest({"image": raw(file.read_bytes())}))
            right += found.outputs["labels"][0, 0] == file.parent.name.encode()
    assert right / len(files) == pytest.approx(report.test.chosen)
    assert right / len(files) > 0.9


def test_decoded_arrays_go_through_the_same_steps(bundle, tmp_path):
    """8-bit images in .npz give the same rows as the images of the folder."""
    _, folder = bundle
    steps = read_steps(folder / "steps.toml")
    graph = Graph(classifier())
    processor = steps.processor(graph.logical_inputs, graph.logical_outputs)
    from_folder = load_samples(folder / "test", graph.logical_inputs, processor, steps.labels)
    files = [folder / "test" / file for file in sorted((folder / "test").rglob("*.png"))]
    pixels = np.stack([np.asarray(Image.open(file))[:, :, None] for file in files])
    np.savez(tmp_path / "d.npz", x=pixels, y=from_folder.labels)
    from_arrays = load_samples(tmp_path / "d.npz", graph.logical_inputs, processor)
    np.testing.assert_array_equal(from_arrays.inputs["image"], from_folder.inputs["image"])


def test_rows_are_in_the_order_of_their_names(tmp_path):
    """Rows are sorted by class and file name; unknown folders are numbered in order; other files are skipped."""
    photos(tmp_path / "d", rows=9)
    (tmp_path / "d" / ".hidden").mkdir()
    (tmp_path / "d" / "zebra" / "notes.txt").write_text("no image")
    processor = processor_of(tmp_path)
    _, named, _ = load_folder(tmp_path / "d", processor, CLASSES)
    inputs, plain, names = load_folder(tmp_path / "d", processor)
    assert names == ("across", "board", "zebra")
    assert len(inputs["image"]) == 9
    np.testing.assert_array_equal(plain, np.sort(plain))
    np.testing.assert_array_equal([CLASSES[i] for i in named], [names[i] for i in plain])


def test_damaged_images_are_named(tmp_path):
    """One error names up to ten damaged images; they are not skipped."""
    folder = photos(tmp_path / "d", rows=30)
    for file in sorted(folder.rglob("*.png"))[:12]:
        file.write_bytes(file.read_bytes()[:60])
    processor = processor_of(tmp_path)
    with pytest.raises(DataError, match=r"12 of 30 images in .* cannot be used: across/.*\.png: the image.*and 2 more"):
        load_folder(folder, processor)


def test_a_folder_without_classes_or_images_is_refused(tmp_path):
    (tmp_path / "d").mkdir()
    processor = processor_of(tmp_path)
    with pytest.raises(DataError, match="no sub-folders"):
        load_folder(tmp_path / "d", processor)
    (tmp_path / "d" / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        load_folder(tmp_path / "d", processor)
    with pytest.raises(DataError, match="no preprocessing steps are given for its images") as caught:
        load_samples(tmp_path / "d", Graph(classifier()).logical_inputs)
    assert "--preprocess" in caught.value.advice


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('do = "layout"', 'do = "run"', "'run'"),
        ('method = "nearest"', 'method = "linear"', "'linear'"),
        ("by = 0.00392156862745098", "factor = 2", "factor"),
        ("labels.txt", "missing.txt", r"missing\.txt"),
        ("[[after]]", "[[later]]", "later"),
        ("[[before]]", "[[before", r"steps\.toml cannot be read"),
    ],
)
def test_a_slip_in_the_file_is_told_before_the_model_is_loaded(tmp_path, old, new, says):
    """Unknown steps, keys, values and missing files are reported before the model is opened."""
    assert old in STEPS
    path = steps_file(tmp_path, STEPS.replace(old, new))
    with pytest.raises(RecipeError, match=says):
        make_plan(tmp_path / "none.onnx", ConversionOptions(targets=["x86-64"], preprocess=path))


def test_steps_that_do_not_fit_the_model_are_refused(tmp_path):
    path = steps_file(tmp_path, STEPS.replace("height = 8", "height = 9"))
    graph = Graph(classifier())
    with pytest.raises(RecipeError, match=r"steps\.toml does not fit the model: .*end in float32 \[1, 9, 8\]"):
        read_steps(path).processor(graph.logical_inputs, graph.logical_outputs)


def test_a_vocabulary_is_carried_by_its_file_name(tmp_path):
    """A vocabulary beside the TOML file is copied into the bundle under its file name."""
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    text = '[[before]]\nsteps = [{do = "word-pieces", vocabulary = "words/vocab.txt", length = 4}]\n'
    found = read_steps(steps_file(tmp_path, text))
    assert found.processing.files() == {"vocab.txt": "vocabulary"}
    assert found.bundle_files()["vocab.txt"][0] == "processing"


def scaled(shape, *operators, dtype=TensorProto.FLOAT):
    """A model whose input goes through `operators` (name, constant) and then a convolution."""
    nodes, tensor, weights = [], "x", {}
    if dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT))
        tensor = "cast"
    for index, (kind, value) in enumerate(operators):
        weights[f"c{index}"] = np.asarray(value, np.float32)
        nodes.append(helper.make_node(kind, [tensor, f"c{index}"], [f"t{index}"]))
        tensor = f"t{index}"
    nodes.append(helper.make_node("ReduceMean", [tensor], ["y"], axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info("x", dtype, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


MEAN, DEVIATION = np.reshape([123.7, 116.3, 103.5], (1, 1, 3)), np.reshape([58.4, 57.1, 57.4], (1, 1, 3))


@pytest.mark.parametrize(
    ("graph", "kinds"),
    [
        (scaled((8, 8, 3), ("Mul", 1 / 255)), ["decode-image", "resize"]),
        (scaled((8, 8, 1), ("Mul", 1 / 127.5), ("Add", -1.0)), ["decode-image", "resize"]),
        (scaled((8, 8, 3), ("Sub", MEAN), ("Div", DEVIATION)), ["decode-image", "resize"]),
        (scaled((3, 8, 8), ("Div", 255.0)), ["decode-image", "resize", "layout"]),
        (scaled((8, 8, 3), dtype=TensorProto.UINT8), ["decode-image", "resize", "cast"]),
    ],
)
def test_models_that_scale_pixels_themselves_are_known(graph, kinds):
    """The detected steps fit these models."""
    found = detect_steps(graph)
    assert [step.name for step in found.processing.before[0].steps] == kinds
    found.processor(graph.logical_inputs, graph.logical_outputs)


@pytest.mark.parametrize(
    "graph",
    [
        scaled((8, 8, 3), ("Mul", 2.0)),
        scaled((8, 8, 3)),
        scaled((8, 8, 5), ("Mul", 1 / 255)),
        scaled((8, 8), ("Mul", 1 / 255)),
        scaled((8, 8, 3), ("Mul", 1e-9)),
    ],
)
def test_other_models_are_not_guessed_at(graph):
    """No steps are detected where no layer scales pixels to about one, or the input is not an image."""
    assert detect_steps(graph) is None
    with pytest.raises(RecipeError, match="has no first layer that scales pixels"):
        choose_steps("auto", graph, [])


def test_what_was_not_evaluated_is_not_shipped_unasked(tmp_path):
    """Steps are detected for a folder of images, or with ``auto``."""
    graph = scaled((8, 8, 3), ("Mul", 1 / 255))
    assert choose_steps(None, graph, [tmp_path / "data.npz", None]) is None
    assert choose_steps(None, graph, [tmp_path, None]).source == "detected"
    assert choose_steps("auto", graph, [None, None]).source == "detected"


@pytest.mark.heavy
def test_keras_layers_are_detected_and_evaluated_through(tmp_path):
    """A Keras model with Rescaling and a folder of images needs no file of steps; its bundle serves image bytes."""
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="photo"),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.save(tmp_path / "m.keras")
    photos(tmp_path / "data")
    (report,) = convert(
        tmp_path / "m.keras",
        targets=["raspberry-pi-4"],
        data=tmp_path / "data",
        output=tmp_path,
        recipe=preset("float32"),
    )
    manifest = parse_manifest((tmp_path / "m-1.0.0-raspberry-pi-4" / "manifest.json").read_bytes())
    assert report.preprocess == "detected"
    assert isinstance(manifest.processing, Processing)
    assert manifest.task.labels == ("across", "board", "zebra")
