"""Recognize the format of a model file by its content, and explain why other files are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

from converters.archives import damage_of
from converters.frontends.files.export_lines import PYTORCH
from converters.frontends.files.keras_file import h5_config, keras_config
from converters.frontends.files.keras_layers import require_plain_layers
from converters.frontends.files.other_files import refuse_folder, refuse_other_file
from converters.frontends.files.pickles import refuse_pickle, refuse_zip_of_pickles
from edgekit.errors import ModelFormatError, NotFoundError

KERAS, H5, SAVED_MODEL, ONNX, PT2, TFLITE = "keras", "h5", "savedmodel", "onnx", "pt2", "tflite"
KNOWN = "edgekit reads .keras, .h5, SavedModel folders, .onnx, .pt2 and float .tflite."
PROGRAM_FILES = ("/models/model.json", "/archive_format")  # in archives of torch.export
_HEAD_BYTES = 4096


def sniff(path: Path) -> str:
    """The format of the model at `path`: ``keras``, ``h5``, ``savedmodel``, ``onnx``, ``tflite`` or ``pt2``.

    It unpickles nothing.

    Raises:
        NotFoundError: There is no file or folder at `path`.
        ModelFormatError: The file is damaged, unknown, a pickle, or of a kind that edgekit does not read.
        UnsupportedOpError: A Keras file contains a layer that is Python code, or that looks up text.
    """
    if not path.exists():
        raise NotFoundError(f"there is no model {str(path)!r}", advice="Check the path.")
    if path.is_dir():
        return _sniff_folder(path)
    if not path.is_file():
        raise ModelFormatError(f"{path} is neither a file nor a folder", advice=KNOWN)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise ModelFormatError(f"{path} is empty", advice=KNOWN)
    if head.startswith(b"PK"):
        return _sniff_zip(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        require_plain_layers(h5_config(path), str(path))
        return H5
    if head[4:8] == b"TFL3":
        return TFLITE
    refuse_pickle(path, head)
    refuse_other_file(path, head)
    return ONNX  # protobuf has no magic bytes: the ONNX frontend parses the file and reports if it is no ONNX


def _sniff_folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return SAVED_MODEL
    refuse_folder(path)
    content = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise ModelFormatError(f"{path} is a folder without saved_model.pb (it contains {content})", advice=KNOWN)


def _sniff_zip(path: Path) -> str:
    if damage := damage_of(path):
        raise ModelFormatError(
            f"{path} begins as a zip archive (as .keras and .pt2 files do) but is damaged: {damage}",
            advice="Copy or save the file again.",
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "config.json" in names and any(name.startswith("model.weights") for name in names):
            require_plain_layers(keras_config(path), str(path))
            return KERAS
        if not any(name.endswith(PROGRAM_FILES) for name in names):
            refuse_zip_of_pickles(path, archive, names)
    if any(name.endswith(PROGRAM_FILES) for name in names):
        return PT2
    if "serialized_exported_program.json" in names:
        raise ModelFormatError(
            f"{path} is a torch.export program in the format before PyTorch 2.8, which consists of pickles",
            advice="Load it in the PyTorch that wrote it, then save it with torch.export.save of PyTorch 2.9 or newer.",
        )
    if "MAR-INF/MANIFEST.json" in names:
        raise ModelFormatError(
            f"{path} is an archive of TorchServe",
            advice=f"Unpack it with unzip, and export the model inside. {PYTORCH}",
        )
    inside = [name for name in names if name.endswith((".onnx", ".tflite", ".keras", ".pt2", "saved_model.pb"))]
    if inside:
        raise ModelFormatError(
            f"{path} is an archive that contains a model", advice=f"Unpack it, and give {inside[0]}."
        )
    if names and all(name.endswith(".npy") for name in names):
        raise ModelFormatError(f"{path} holds arrays (.npz), not a model", advice="Give data with --data.")
    raise ModelFormatError(f"{path} is a zip archive of unknown content ({', '.join(names[:3])} ...)", advice=KNOWN)
