"""Reads the configuration of .keras and .h5 files without Keras."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from edgekit.errors import ModelFormatError

MAX_CONFIG_BYTES = 64 * 1024**2
WEIGHTS_ONLY = (
    "Build the model in Python, load these weights into it with model.load_weights(path), save it with "
    'model.save("model.keras"), and convert that.'
)


def keras_config(path: Path) -> Any:
    """The configuration in a .keras file.

    Raises:
        ModelFormatError: It is too large or no JSON.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("config.json")
        if info.file_size > MAX_CONFIG_BYTES:
            raise ModelFormatError(f"{path}: config.json is {info.file_size} bytes, the limit is {MAX_CONFIG_BYTES}")
        return _parsed(archive.read(info), path, "config.json")


def h5_config(path: Path) -> Any:
    """The configuration in an .h5 file.

    Raises:
        ModelFormatError: The file is damaged, or holds weights without a model.
    """
    import h5py  # comes with Keras; only files of this format need it

    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            content = ", ".join(sorted(file)[:5])
    except (OSError, RuntimeError, KeyError) as error:
        raise ModelFormatError(
            f"{path} begins as an HDF5 file but is damaged or truncated", advice="Copy or save the file again."
        ) from error
    if config is None:
        raise ModelFormatError(
            f"{path} holds weights without a model (it contains {content or 'nothing'})", advice=WEIGHTS_ONLY
        )
    return _parsed(config, path, "model_config")


def _parsed(data: str | bytes, path: Path, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: {what} is not valid JSON: {error}", advice="Save the model again.") from error
