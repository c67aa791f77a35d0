import io
import os
import pickle
import shutil
import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.framework_process import TensorFlowProcess
from converters.frontends import load_model, sniff
from converters.frontends.onnx import load_onnx
from edgekit.errors import ModelFormatError, NotFoundError, UnsupportedOpError
from tests.simulators import models


def refused(path, kind=ModelFormatError):
    with TensorFlowProcess() as child, pytest.raises(kind) as caught:
        load_model(path, child)
    return caught.value


def zip_of(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return path


def test_missing_model_is_named(tmp_path):
    """A path that does not exist gives NotFoundError with the path."""
    assert "nothing.onnx" in str(refused(tmp_path / "nothing.onnx", NotFoundError))


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_is_refused_and_never_loaded(tmp_path, monkeypatch, protocol):
    """A pickle is refused whatever its file name, and its code does not run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(pickle.dumps(Bomb(), protocol))
    assert "pickle" in str(refused(path))
    assert not (tmp_path / "exploded").exists()


def test_torch_file_is_refused_as_a_pickle(tmp_path):
    """A .pt file is a zip with a pickle; the error says so and names the alternative."""
    error = refused(zip_of(tmp_path / "model.pt", archive__data_pkl="x", **{"archive/data.pkl": "x"}))
    assert "PyTorch" in str(error)
    assert "torch.export" in error.advice


def test_tflite_is_refused_by_content(tmp_path):
    """A .tflite with another file name is still recognized."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))
    assert ".tflite" in str(refused(path))


def test_array_files_are_refused_as_data(tmp_path):
    """Arrays passed as the model are reported as data."""
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    np.save(tmp_path / "data.npy", np.zeros(3))
    assert "--data" in refused(tmp_path / "data.npz").advice
    assert "--data" in refused(tmp_path / "data.npy").advice


def test_truncated_zip_says_truncated(tmp_path):
    """A truncated .keras file is reported as truncated."""
    whole = io.BytesIO()
    zip_of(whole, config_json="{}", **{"config.json": "{}", "model.weights.h5": "x" * 500})
    path = tmp_path / "model.keras"
    path.write_bytes(whole.getvalue()[:300])
    assert "truncated" in str(refused(path))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_onnx_is_refused(tmp_path, share):
    """A truncated ONNX file is refused with its size."""
    data = models.classifier().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    error = refused(path)
    assert "truncated" in str(error)
    assert str(path.stat().st_size) in str(error)


@pytest.mark.parametrize("content", [b"", b"hello, I am no model at all", bytes(range(256)) * 9, b"\x00" * 64])
def test_unknown_content_is_refused(tmp_path, content):
    """An unknown file is refused with its first bytes, or as empty."""
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    error = refused(path)
    assert "not a model that edgekit can read" in str(error) or "is empty" in str(error)


def test_folder_without_saved_model_says_what_it_holds(tmp_path):
    """A folder that is not a SavedModel is refused with the names of its files."""
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt" in str(refused(tmp_path))


def test_custom_operator_is_named_with_its_layer(tmp_path):
    """A node of another domain is refused with domain, operator and name."""
    node = helper.make_node("Warp", ["x"], ["y"], name="warp_1", domain="acme")
    model = models.model_of([node], {"x": ["batch", 4]}, {"y": ["batch", 4]}, domains=["acme"])
    error = refused(models.saved(model, tmp_path / "m.onnx"), UnsupportedOpError)
    assert (error.op, error.layer) == ("acme::Warp", "warp_1")


def test_missing_external_data_is_named(tmp_path):
    """The error names a missing external data file."""
    path = tmp_path / "m.onnx"
    onnx.save(models.classifier(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in str(refused(path))


def test_external_data_that_is_cut_off_is_named(tmp_path):
    """The message has the file's name and no text of ONNX, which --verbose shows."""
    path = tmp_path / "m.onnx"
    onnx.save(models.classifier(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").write_bytes(b"12")
    with pytest.raises(ModelFormatError, match=r"keeps its weights in weights\.bin, which does not fit") as caught:
        load_onnx(path)
    assert "TensorProto" not in str(caught.value)
    assert caught.value.foreign_text


def test_external_data_outside_the_folder_is_not_read(tmp_path):
    """A model cannot make edgekit read a file elsewhere on the machine."""
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "m.onnx"
    onnx.save(models.classifier(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    assert "cannot be read" in str(refused(path))


def test_free_axis_other_than_the_batch_is_refused(tmp_path):
    """A free width is refused, and the axis is named."""
    model = models.model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", "w"]}, {"y": ["n", "w"]})
    assert "axis 1 (w)" in str(refused(models.saved(model, tmp_path / "m.onnx")))


@pytest.mark.heavy
def test_lambda_layer_is_refused_by_name(keras_folder):
    """A Lambda layer is Python code; it is refused by its name before TensorFlow starts."""
    error = refused(keras_folder / "lambda.keras", UnsupportedOpError)
    assert (error.op, error.layer) == ("Lambda", "twice")


@pytest.mark.heavy
def test_lambda_layer_in_h5_is_refused(keras_folder, child):
    """.h5 files are loaded in safe mode too."""
    with pytest.raises(UnsupportedOpError, match=r"(?i)lambda"):
        load_model(keras_folder / "lambda.h5", child)


@pytest.mark.heavy
def test_truncated_h5_is_refused(keras_folder, tmp_path, child):
    """A truncated .h5 is refused before TensorFlow is imported, and the error names the file."""
    path = tmp_path / "cut.h5"
    data = (keras_folder / "tiny.h5").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for read in (sniff, lambda path: load_model(path, child)):
        with pytest.raises(ModelFormatError, match=r"cut\.h5 begins as an HDF5 file but is damaged or truncated"):
            read(path)


@pytest.mark.parametrize(("value", "found"), [(np.nan, "18 undefined"), (-np.inf, "18 infinite")])
def test_weight_that_is_no_number_is_named(tmp_path, value, found):
    """A weight with NaN or infinity is reported before the model runs."""
    model = models.classifier()
    for tensor in model.graph.initializer:
        if tensor.name == "dense":
            tensor.CopyFrom(models.numpy_helper.from_array(np.full((6, 3), value, np.float32), "dense"))
    assert f"weight dense contains {found}" in str(refused(models.saved(model, tmp_path / "m.onnx")))


def test_infinite_mask_is_no_fault(tmp_path):
    """A constant added to attention scores may be minus infinity."""
    nodes = [helper.make_node("Add", ["x", "mask"], ["masked"]), helper.make_node("Softmax", ["masked"], ["y"])]
    mask = np.array([[0, 0, 0, -np.inf]], np.float32)
    model = models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, {"mask": mask})
    assert load_onnx(models.saved(model, tmp_path / "m.onnx")).outputs


def test_operator_that_onnx_lacks_is_named_with_its_layer(tmp_path):
    """A node of the standard domain with an operator that no opset has is refused."""
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="frob_1")
    model = models.model_of([node], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    error = refused(models.saved(model, tmp_path / "m.onnx"), UnsupportedOpError)
    assert (error.op, error.layer) == ("Frobnicate", "frob_1")


def test_opset_of_the_future_is_refused_with_both_versions(tmp_path):
    """An opset that does not exist yet is refused."""
    model = models.model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    model.opset_import[0].version = 99
    assert "opset 99 and cannot be converted to opset 23" in str(refused(models.saved(model, tmp_path / "m.onnx")))


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    """A named pipe is refused without opening it, because opening would block."""
    os.mkfifo(tmp_path / "m.onnx")
    assert "neither a file nor a folder" in str(refused(tmp_path / "m.onnx"))


@pytest.mark.heavy
def test_damaged_saved_model_names_both_loaders(keras_folder, tmp_path, child):
    """With truncated weights both loaders fail, and the error has both reasons."""
    folder = tmp_path / "cut"
    shutil.copytree(keras_folder / "tiny_saved", folder)
    [weights] = (folder / "variables").glob("*.data-*")
    weights.write_bytes(weights.read_bytes()[:10])
    with pytest.raises(ModelFormatError, match="nor by the loader of TensorFlow 1"):
        load_model(folder, child)
