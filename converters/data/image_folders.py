"""Reads a folder of images, with one sub-folder per class, into the arrays of a model's inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from converters.machine import memory_bytes
from edgekit.decoding import require_decoder
from edgekit.errors import DataError
from edgekit.preprocess import Processor
from edgekit.tensors import Array

SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_NAMED = 10  # damaged files that an error message names
MEMORY_SHARE = 0.5


def load_folder(
    path: Path, processor: Processor | None, labels: Sequence[str] = ()
) -> tuple[dict[str, Array], Array, tuple[str, ...]]:
    """Read every image below `path` with the preprocessing steps that devices run.

    Args:
        path: The folder. Its sub-folders are the classes and are read recursively. Names that begin with a dot are
            skipped, and files whose names do not end as JPEG or PNG.
        processor: Makes one row of each image.
        labels: Names of the classes in the model's order. Where they are empty, or a folder is not among them, classes
            are numbered in the order of the folders' names, as Keras and torchvision number them.

    Returns:
        Inputs (N, ...), classes (N,) int64, and the names of the classes in order. Rows are sorted by class, then by
        file name.

    Raises:
        DataError: there are no sub-folders or images, the steps are unknown or decode no image, images are damaged
            (up to 10 are named), or they need more memory than this machine has.
        MissingExtraError: Pillow is not installed.
    """
    raws = [raw for raw in processor.raw if raw.kind == "image"] if processor else []
    if processor is None or len(raws) != 1 or len(processor.inputs) != 1:
        raise DataError(
            f"{path} is a folder, and no preprocessing steps are given for its images",
            advice="Give --preprocess FILE with a step decode-image for the model's only input; "
            "docs/preprocess.md shows an example.",
        )
    require_decoder()
    files, names = image_files(path, labels)
    inputs = _rows(path, processor, raws[0].name, [file for file, _ in files])
    return inputs, np.array([index for _, index in files], np.int64), names


def image_files(path: Path, labels: Sequence[str] = ()) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """The images below `path` with their classes, in the order of the rows of `load_folder`, and the classes' names.

    Raises:
        DataError: there are no sub-folders or images.
    """
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{path} has no sub-folders", advice="Put the images of each class into one sub-folder.")
    names = tuple(labels) if set(folders) <= set(labels) else tuple(folders)
    files = [(file, names.index(folder)) for folder in folders for file in _images(path / folder)]
    if not files:
        raise DataError(f"{path} holds no images (files that end in {', '.join(SUFFIXES)})")
    return files, names


def load_originals(path: Path, labels: Sequence[str] = ()) -> Array:
    """The bytes of each image file (N,), in the order of the rows of `load_folder`.

    Raises:
        DataError: there are no sub-folders or images, or a file cannot be read.
    """
    files, _ = image_files(path, labels)
    rows = np.empty(len(files), dtype=object)
    try:
        rows[:] = [file.read_bytes() for file, _ in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from error
    return rows


def _images(folder: Path) -> list[Path]:
    images = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images += [Path(path) / name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(images, key=lambda file: file.relative_to(folder).as_posix())


def _rows(path: Path, processor: Processor, raw: str, files: Sequence[Path]) -> dict[str, Array]:
    rows: dict[str, Array] = {}
    faults = []
    for index, file in enumerate(files):
        try:
            made = processor.convert_rows(raw, [file.read_bytes()])
        except (DataError, OSError) as error:
            faults.append(f"{file.relative_to(path)}: {str(error).removeprefix(f'{raw}[0]: ')}")
            continue
        for name, value in made.items():
            if name not in rows:
                _require_memory(path, len(files), value.nbytes)
                rows[name] = np.empty((len(files), *value.shape[1:]), value.dtype)
            if value.shape[1:] != rows[name].shape[1:]:
                shape, others = list(value.shape[1:]), list(rows[name].shape[1:])
                faults.append(
                    f"{file.relative_to(path)}: has the shape {shape} after preprocessing, other images have {others}"
                )
            else:
                rows[name][index] = value[0]
    if faults:
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise DataError(
            f"{len(faults)} of {len(files)} images in {path} cannot be used: {'; '.join(faults[:MAX_NAMED])}{more}",
            advice="Repair or remove them. They are not skipped, because the result would describe other data.",
        )
    return rows


def _require_memory(path: Path, rows: int, row_bytes: int) -> None:
    there = memory_bytes()
    if rows * row_bytes > MEMORY_SHARE * there:
        raise DataError(
            f"the {rows} images in {path} need {rows * row_bytes / 2**30:.1f} GiB as model inputs, "
            f"this machine has {there / 2**30:.1f} GiB",
            advice="Give fewer images: 2,000 to 10,000 prove a budget of one point.",
        )
