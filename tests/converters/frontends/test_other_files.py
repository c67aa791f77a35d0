"""Model files of other tools: each is recognized by its content, and the error says how to export the model."""

import importlib.util
import json
import zipfile

import pytest

from converters.frontends import sniff
from edgekit.errors import ModelFormatError


def refused(path):
    with pytest.raises(ModelFormatError) as caught:
        sniff(path)
    return str(caught.value), caught.value.advice


def written(path, data):
    path.write_bytes(data)
    return path


def graph_def():
    """The first node of a TensorFlow GraphDef: name and operator."""
    node = b"\x0a\x05image" + b"\x12\x0bPlaceholder"
    return b"\x0a" + bytes([len(node)]) + node


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
FILES = [
    ("safetensors", len(HEADER).to_bytes(8, "little") + HEADER + bytes(4), "holds weights and no model", "load_file"),
    ("pb", graph_def(), "frozen TensorFlow graph .* operator Placeholder", "tf2onnx.convert --graphdef model.pb"),
    ("pbtxt", b'node {\n  name: "x"\n  op: "Placeholder"\n}', "TensorFlow graph as text", "tf2onnx"),
    ("engine", b"ftrt\x00\x00\x01\x02", "TensorRT engine", "ONNX file"),
    ("ort", b"\x18\x00\x00\x00ORTM" + bytes(40), "ONNX Runtime's own format", ".onnx file"),
    ("pte", b"\x18\x00\x00\x00ET12" + bytes(40), "ExecuTorch", "torch.export.save"),
    ("xml", b'<?xml version="1.0"?>\n<net name="m" version="11">', "OpenVINO", "made from"),
    ("json", b'{"format": "layers-model", "modelTopology": {}}', "TensorFlow.js", "made from"),
    ("gguf", b"GGUF\x03\x00", "GGUF", "made from"),
    ("param", b"7767517\n3 3\n", "ncnn", "ONNX file"),
    ("onnx", b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS", "git lfs pull"),
    ("onnx", b"<!DOCTYPE html>\n<html>", "web page", "Download"),
    ("gz", b"\x1f\x8b\x08\x00data", "packed with gzip", "Unpack"),
    ("pdmodel", b"\x0a\x00\x12\x01", "PaddlePaddle", "paddle2onnx"),
    ("index", b"\x00\x00\x01", "TensorFlow checkpoint", "model.load_weights"),
]


@pytest.mark.parametrize(
    ("ending", "data", "what", "line"), FILES, ids=[f"{one[0]}-{n}" for n, one in enumerate(FILES)]
)
def test_file_of_another_tool_is_named_with_what_to_do(tmp_path, ending, data, what, line):
    """The error says what the file is, and the advice has the line to paste or the file to give."""
    text, advice = refused(written(tmp_path / f"model.{ending}", data))
    assert all(part in text for part in what.split(" .* "))
    assert line in advice


def test_pickle_of_another_package_is_named(tmp_path):
    """The class in a pickle is read without loading it, and scikit-learn gets the lines of its exporter."""
    text, advice = refused(written(tmp_path / "model.pkl", b"\x80\x02csklearn.linear_model._base\nRidge\n)\x81."))
    assert "class sklearn.linear_model._base.Ridge" in text
    assert "skl2onnx" in advice


def archive(path, **files):
    with zipfile.ZipFile(path, "w") as made:
        for name, data in files.items():
            made.writestr(name.replace("__", "/"), data)
    return path


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.heavy
def test_files_of_pytorch_are_told_apart(tmp_path):
    """Weights, a whole model, and TorchScript, in the formats of today and before 1.6, get lines of their own."""
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(2, 1))
    for zipped in (True, False):
        torch.save(net.state_dict(), tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
        torch.save(net, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
        text, advice = refused(tmp_path / "weights.pt")
        assert "with weights and no model" in text
        assert "load_state_dict(torch.load('weights.pt', weights_only=True))" in advice
        text, advice = refused(tmp_path / "whole.pt")
        assert "class torch.nn.modules.container.Sequential" in text
        assert "torch.export.save" in advice
    torch.jit.script(net).save(str(tmp_path / "script.pt"))
    text, advice = refused(tmp_path / "script.pt")
    assert "TorchScript" in text
    assert "torch.onnx.export" in advice


def test_weights_of_pytorch_are_recognized_without_pytorch(tmp_path):
    """An archive whose pickle names only tensors holds weights; one that names a model's class holds the model."""
    weights = b"\x80\x02ccollections\nOrderedDict\n0ctorch._utils\n_rebuild_tensor_v2\n."
    text, _ = refused(archive(tmp_path / "w.pt", archive__version="3", **{"archive/data.pkl": weights}))
    assert "with weights and no model" in text
    whole = b"\x80\x02cultralytics.nn.tasks\nDetectionModel\n)\x81."
    text, advice = refused(archive(tmp_path / "yolo.pt", archive__version="3", **{"archive/data.pkl": whole}))
    assert "ultralytics.nn.tasks.DetectionModel" in text
    assert "YOLO('yolo.pt').export(format='onnx', opset=17)" in advice


def test_archive_with_a_model_names_it(tmp_path):
    """A zip with a model inside is refused with the name of the model."""
    _, advice = refused(archive(tmp_path / "m.zip", m__best_onnx="x", **{"m/best.onnx": "x"}))
    assert "m/best.onnx" in advice
    text, _ = refused(archive(tmp_path / "m.mar", **{"MAR-INF/MANIFEST.json": "{}", "net.pt": "x"}))
    assert "TorchServe" in text


def test_folders_of_other_tools_are_named(tmp_path):
    """Folders of Transformers, checkpoints, and folders with a model inside."""
    for name, files, what, line in (
        ("bert", ("config.json", "model.safetensors"), "Transformers", "optimum-cli export onnx"),
        ("checkpoint", ("m.index", "m.data-00000-of-00001"), "checkpoint", "model.save('model.keras')"),
        ("paddle", ("inference.pdmodel", "inference.pdiparams"), "PaddlePaddle", "paddle2onnx"),
        ("weights", ("best.onnx", "readme.txt"), "contains a model", "best.onnx"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_bytes(b"x")
        text, advice = refused(folder)
        assert what in text
        assert line in advice


def test_file_of_a_saved_model_points_to_its_folder(tmp_path):
    """saved_model.pb alone is refused with the folder to give."""
    _, advice = refused(written(tmp_path / "saved_model.pb", b"\x08\x01\x12\x00"))
    assert str(tmp_path) in advice
