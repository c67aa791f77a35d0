"""More inputs from few: rows mixed with each other, shifted or flipped. The float model gives the answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekit.bundle.recipe import FLIPPED, MIXED, SHIFTED
from edgekit.tensors import Array

LEAST_OWN = 0.5  # share of a mixed row that is the row itself
MOST_SHIFT = 0.1  # of an image's height and width
IMAGE_RANK = 4
TAUGHT_COPIES, TAUGHT_ROWS, TAUGHT_BYTES = 9, 1024, 32 << 20  # of each kind; rows and bytes with all copies


def kinds_for(inputs: Mapping[str, Array]) -> tuple[str, ...]:
    """The kinds of copies that inputs (N, ...) can have: none for indices and flags, and images can move."""
    if any(value.dtype.kind != "f" for value in inputs.values()):
        return ()
    images = all(value.ndim == IMAGE_RANK for value in inputs.values())
    return (MIXED, SHIFTED, FLIPPED) if images else (MIXED,)


def with_copies(inputs: Mapping[str, Array], kind: str, copies: int, seed: int) -> dict[str, Array]:
    """`inputs` (N, ...) followed by `copies` changed copies of each row, all in a random order."""
    rng = np.random.default_rng(seed)
    made = [inputs, *(_KINDS[kind](inputs, rng) for _ in range(copies))]
    order = rng.permutation(len(next(iter(inputs.values()))) * (copies + 1))
    return {name: value[order] for name, value in _joined(made).items()}


def taught_inputs(inputs: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Inputs (N, ...) to train on: images with mixed and shifted copies, and others as they are.

    A training on few rows learns these rows and nothing else. Copies helped with every network of images that was
    tried. They made a transformer over the rows of an image worse: its mixed inputs are unlike any real one.
    """
    rng, rows = np.random.default_rng(seed), len(next(iter(inputs.values())))
    most = TAUGHT_BYTES / max(1, sum(value.nbytes for value in inputs.values()) / rows)
    copies = min(TAUGHT_COPIES, int(min(TAUGHT_ROWS, most) / rows - 1) // 2)
    if SHIFTED not in kinds_for(inputs) or copies < 1:
        return dict(inputs)
    return _joined([inputs, *(_KINDS[kind](inputs, rng) for kind in (MIXED, SHIFTED) for _ in range(copies))])


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _mixed(inputs: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    count = len(next(iter(inputs.values())))
    other, own = rng.permutation(count), rng.uniform(LEAST_OWN, 1.0, count)
    return {name: _mix(value, value[other], own) for name, value in inputs.items()}


def _mix(value: Array, other: Array, own: Array) -> Array:
    share = own.reshape(-1, *[1] * (value.ndim - 1)).astype(value.dtype)
    mixed: Array = share * value + (1 - share) * other
    return mixed


def _shifted(inputs: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Each row moved by up to a tenth of its height and width; the border is repeated."""
    moved = {}
    for name, value in inputs.items():
        made = value.copy()
        for axis in _positions(value):
            size = value.shape[axis]
            most = max(1, round(MOST_SHIFT * size))
            for row, by in enumerate(rng.integers(-most, most + 1, len(value)).tolist()):
                made[row] = np.take(made[row], np.clip(np.arange(size) - by, 0, size - 1), axis=axis - 1)
        moved[name] = made
    return moved


def _flipped(inputs: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Each row mirrored from left to right."""
    return {name: np.flip(value, _positions(value)[1]) for name, value in inputs.items()}


def _positions(images: Array) -> tuple[int, int]:
    """The axes of height and width of images (N, C, H, W) or (N, H, W, C): there are fewer channels than columns."""
    return (2, 3) if images.shape[1] <= images.shape[3] else (1, 2)


_KINDS: dict[str, Callable[[Mapping[str, Array], np.random.Generator], dict[str, Array]]] = {
    MIXED: _mixed,
    SHIFTED: _shifted,
    FLIPPED: _flipped,
}
