"""The sizes of one row of an input, for sources that are converted without an ONNX form."""

from __future__ import annotations

from collections.abc import Sequence

from converters.graph.stated import Stated
from edgekit.errors import ModelFormatError, SettingsError

PICTURE_RANK, PICTURE_SIZE, OTHER_SIZE = 4, 320, 128  # proposed for free axes


def row_sizes(source: str, name: str, sizes: Sequence[int | None], names: Sequence[str], stated: Stated) -> list[int]:
    """The sizes of input `name` with a batch of 1: its own, the stated ones, or those of the data.

    Args:
        source: The model, for messages.
        name: The input.
        sizes: Its sizes, None for a free one.
        names: All inputs of the model.
        stated: What the user stated.

    Raises:
        ModelFormatError: A free axis has no size; the message proposes one.
        SettingsError: The stated shape does not fit.
    """
    given, data = stated.shapes.get(name), stated.data_of(name, names)
    if given is not None:
        fits = len(given) == len(sizes) and all(
            size in (None, wanted) for size, wanted in zip(sizes[1:], given[1:], strict=True)
        )
        if not fits:
            raise SettingsError(
                f"--input-shape gives {name} the shape {list(given)}, and {source} has {_text(sizes)}",
                advice="Give one size for each axis; fixed sizes stay as they are.",
            )
        return [1, *given[1:]]
    if data is not None and len(data.shape) == len(sizes):
        pairs = zip(sizes[1:], data.shape[1:], strict=True)
        sizes = [1, *(found if size is None else size for size, found in pairs)]
    proposed = PICTURE_SIZE if len(sizes) == PICTURE_RANK else OTHER_SIZE
    row = [1 if axis == 0 and size is None else size or proposed for axis, size in enumerate(sizes)]
    if None in sizes[1:] and not stated.propose:
        raise ModelFormatError(
            f"{source}: input {name} has the shape {_text(sizes)}, expected only the batch to be free",
            advice=f"Give its sizes, for example --input-shape {name}={','.join(map(str, row))}.",
        )
    return row


def _text(sizes: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"
