"""The sizes of one row of each input, for sources that are converted without an ONNX form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from converters.frontends.likely_sizes import kind_of, likely_sizes
from converters.graph.stated import Stated
from edgekit.errors import ModelFormatError, SettingsError

Sizes = Sequence[int | None]  # of an input; None for a free axis


def rows_of(
    source: str,
    inputs: Mapping[str, Sizes],
    stated: Stated,
    floats: Mapping[str, bool],
    runs: Callable[[dict[str, list[int]]], bool] = lambda rows: True,
    *,
    maps: bool,
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """The sizes of all inputs with a batch of 1 (their own, the stated ones, or those of the data), and notes.

    Args:
        source: The model, for messages.
        inputs: The sizes of each input.
        stated: What the user stated.
        floats: True for each input of floats.
        runs: True if the model runs with these sizes; asked before sizes are proposed.
        maps: The answers have places (boxes, maps), so that large pictures are likely.

    Raises:
        ModelFormatError: A free axis has no size; the message proposes one.
        SettingsError: A stated shape does not fit.
    """
    known = {name: _known(source, name, sizes, list(inputs), stated) for name, sizes in inputs.items()}
    kinds = {
        (name, axis): kind_of(len(sizes), axis, floats=floats[name])
        for name, sizes in known.items()
        for axis, size in enumerate(sizes)
        if size is None
    }
    proposals = (_filled(known, sizes) for sizes in likely_sizes(kinds, maps=maps))
    first = next(proposals)
    if not kinds:
        return first, ()
    rows = next((rows for rows in (first, *proposals) if runs(rows)), first)
    free = list(dict.fromkeys(name for name, _ in kinds))
    options = " ".join(f"--input-shape {name}={','.join(map(str, rows[name]))}" for name in free)
    if not stated.propose:
        found = ", ".join(f"input {name} has the shape {_text(inputs[name])}" for name in free)
        raise ModelFormatError(
            f"{source}: {found}, expected only the batch to be free",
            advice=f"Give its sizes, for example {options}; or give --data with real samples, whose shapes are taken.",
        )
    return rows, (f"free axes are shown with proposed sizes: {options}",)


def _known(source: str, name: str, sizes: Sizes, names: Sequence[str], stated: Stated) -> list[int | None]:
    """The sizes of an input with a batch of 1, as far as they are its own, stated, or in the data."""
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
        return [1, *(found if size is None else size for size, found in pairs)]
    return [1 if axis == 0 and size is None else size for axis, size in enumerate(sizes)]


def _filled(known: Mapping[str, Sizes], proposed: Mapping[tuple[str, int], int]) -> dict[str, list[int]]:
    return {
        name: [proposed[name, axis] if size is None else size for axis, size in enumerate(sizes)]
        for name, sizes in known.items()
    }


def _text(sizes: Sizes) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"
