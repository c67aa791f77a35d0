"""Damaged archives: the error says what is damaged, in edgekit's words, before any framework reads the file."""

import zipfile

import numpy as np
import pytest

from converters.archives import damage_of
from converters.data.samples import _read
from converters.frontends.files.sniff import sniff
from edgekit.errors import DataError, ModelFormatError

PART = "model.weights.h5"


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
        file.writestr(PART, bytes(range(256)) * 64)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_not_copied_whole(tmp_path, share):
    """The directory of an archive is at its end."""
    path = tmp_path / "model.keras"
    data = archive(path)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelFormatError, match="its end is missing, so it was not written or copied whole"):
        sniff(path)


def test_a_damaged_part_is_named(tmp_path):
    """Its checksum tells; TensorFlow would fail with BadZipFile."""
    path = tmp_path / "model.keras"
    data = archive(path)
    assert damage_of(path) == ""
    path.write_bytes(data.replace(bytes(range(256)), bytes(256), 1))
    with pytest.raises(ModelFormatError, match=f"its part {PART} is damaged"):
        sniff(path)


def compressed(path):
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 4)))
    return path.read_bytes()


def objects(path):
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    return path.read_bytes()


def numbers(path):
    np.save(path, np.zeros((50, 4)))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "make", "change", "text"),
    [
        ("data.npz", compressed, lambda data: data[:-30], "its end is missing"),
        ("data.npz", compressed, lambda data: data[:200] + bytes(40) + data[240:], "its part x.npy is damaged"),
        ("data.npz", compressed, lambda data: b"", "it is empty"),
        ("data.npy", objects, lambda data: data, "it holds Python objects, or is a file of another kind"),
        ("data.npy", numbers, lambda data: data[:300], "its contents are damaged"),
    ],
)
def test_data_files(tmp_path, name, make, change, text):
    """No text of zipfile, zlib or NumPy."""
    path = tmp_path / name
    path.write_bytes(change(make(path)))
    with pytest.raises(DataError, match=f"cannot be read as .npz or .npy: {text}"):
        _read(path)
