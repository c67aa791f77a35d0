"""Sensible sizes for free axes, by what an axis probably counts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

PICTURE_SIZES = (640, 224, 320, 256, 512, 299, 96, 64, 32)
TEXT_HEIGHTS, TEXT_WIDTH = (48, 32, 64), 320
SOUND_SIZES = (16000, 512, 576, 1600, 8000)
OTHER_SIZES = (128, 64, 32, 16, 100, 1)

Place = TypeVar("Place", bound=Hashable)  # an axis of an input


def kind_of(rank: int, index: int, *, floats: bool) -> str:
    """``picture``, ``sound`` or ``other``: what axis `index` of an input with `rank` axes probably counts.

    Args:
        rank: The number of axes, with the batch.
        index: The axis.
        floats: The input has floats.
    """
    if rank == 4 and index > 0:
        return "picture"
    return "sound" if index == rank - 1 and rank in (2, 3) and floats else "other"


def likely_sizes(kinds: Mapping[Place, str], *, maps: bool) -> Iterator[dict[Place, int]]:
    """Combinations of sensible sizes, the likeliest first; axes of one kind get the same size.

    Args:
        kinds: What each free axis counts, as `kind_of` says.
        maps: The answers have places (boxes, maps), so that large pictures are likely.
    """
    sizes = {"picture": PICTURE_SIZES if maps else PICTURE_SIZES[1:], "sound": SOUND_SIZES, "other": OTHER_SIZES}
    pictures = [place for place, kind in kinds.items() if kind == "picture"]
    first = {place: sizes[kind][0] for place, kind in kinds.items()}
    yield first
    if len(pictures) == 2:  # lines of text are lower than wide
        for low in TEXT_HEIGHTS:
            yield {**first, pictures[0]: low, pictures[1]: TEXT_WIDTH}
    for step in range(1, max(map(len, sizes.values()))):
        yield {place: sizes[kind][min(step, len(sizes[kind]) - 1)] for place, kind in kinds.items()}
