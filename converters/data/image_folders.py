"""A folder of images, one sub-folder a class, to the arrays that a model takes."""

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
NAMED = 10  # damaged files that a message names
MEMORY_SHARE = 0.5


def load_folder(
    path: Path, processor: Processor | None, labels: Sequence[str] = ()
) -> tuple[dict[str, Array], Array, tuple[str, ...]]:
    """Read every image below `path`, through the very steps that devices run.

    Args:
        path: Its sub-folders are the classes; folders within them are gone through too. Names that begin with a dot
            are left out, and so are files that are no JPEG or PNG by their names.
        processor: What makes a row of an image.
        labels: Names of the classes in the model's order. Where the folders are not among them, or there are none,
            classes are numbered in the order of the folders' names, as Keras and torchvision number them.

    Returns:
        Inputs (N, ...), classes (N,) int64, and the names of the classes in order. Rows are in the order of their
        names, class by class.

    Raises:
        DataError: there are no sub-folders or images, the steps are unknown or decode something else, images are
            damaged (named, up to 10), or they need more memory than there is.
        MissingExtraError: Pillow is not installed.
    """
    raws = [raw for raw in processor.raw if raw.kind == "image"] if processor else []
    if processor is None or len(raws) != 1 or len(processor.inputs) != 1:
        raise DataError(
            f"{path} is a folder, and nothing says how its images become the model's input",
            advice="Give --preprocess FILE with a step decode-image for the model's only input; "
            "docs/preprocess.md shows one.",
        )
    require_decoder()
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{path} has no sub-folders", advice="Put the images of each class into a folder of its own.")
    names = tuple(labels) if set(folders) <= set(labels) else tuple(folders)
    files = [(file, names.index(folder)) for folder in folders for file in _images(path / folder)]
    if not files:
        raise DataError(f"{path} holds no image (files ending in {', '.join(SUFFIXES)})")
    inputs = _rows(path, processor, raws[0].name, [file for file, _ in files])
    return inputs, np.array([index for _, index in files], np.int64), names


def _images(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _rows(path: Path, processor: Processor, raw: str, files: Sequence[Path]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    faults = []
    for row, file in enumerate(files):
        try:
            made = processor.many(raw, [file.read_bytes()])
        except (DataError, OSError) as error:
            faults.append(f"{file.relative_to(path)}: {str(error).removeprefix(f'{raw}[0]: ')}")
            continue
        for name, value in made.items():
            if name not in found:
                _require_memory(path, len(files), value.nbytes)
                found[name] = np.empty((len(files), *value.shape[1:]), value.dtype)
            if value.shape[1:] != found[name].shape[1:]:
                have, want = list(value.shape[1:]), list(found[name].shape[1:])
                faults.append(f"{file.relative_to(path)}: becomes {have}, others {want}")
            else:
                found[name][row] = value[0]
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise DataError(
            f"{len(faults)} of {len(files)} images in {path} cannot be used: {'; '.join(faults[:NAMED])}{more}",
            advice="Mend or remove them: a number on fewer images than were given would be another number.",
        )
    return found


def _require_memory(path: Path, rows: int, row_bytes: int) -> None:
    there = memory_bytes()
    if rows * row_bytes > MEMORY_SHARE * there:
        raise DataError(
            f"the {rows} images in {path} need {rows * row_bytes / 2**30:.1f} GiB as the model takes them, "
            f"this machine has {there / 2**30:.1f} GiB",
            advice="Give fewer images: 2,000 to 10,000 prove a budget of one point.",
        )
