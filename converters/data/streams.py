"""Streams in the data of a model with state: which rows form one stream, and running them in order from zero state.

Rows with the same id are one stream, in the order of the file. State is never in data: it is the model's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekit.errors import DataError
from edgekit.tensors import Array, TensorSpec

STREAM = "stream"
LEAST_STREAMS = 5  # fewer streams are cut, so that each part of the data has some

Run = Callable[[dict[str, Array]], Mapping[str, Array]]


def stream_ids(values: Array | None, rows: int) -> Array:
    """The stream of each row as integers from 0 on, in the order of their first rows; without values one stream.

    Args:
        values: Ids of streams (N,), integers or texts; None where the data has none.
        rows: The number of rows.

    Raises:
        DataError: the ids have another shape or type.
    """
    if values is None:
        return np.zeros(rows, np.int64)
    if values.shape != (rows,) or values.dtype.kind not in "iuSU":
        raise DataError(
            f"{STREAM}: found {values.dtype} {list(values.shape)}, expected an id for each of the {rows} rows, "
            "integers or texts",
            advice=f"Save {STREAM} as an array (N,), for example numpy.repeat(numpy.arange(streams), steps).",
        )
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return order[inverse.reshape(-1)].astype(np.int64)


def roll(
    run: Run, feeds: Mapping[str, str], zero: Sequence[TensorSpec], inputs: Mapping[str, Array], streams: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run every stream in order from the zero state; all streams take their next step in one call.

    Args:
        run: Runs the model on samples: inputs (M, ...) to outputs (M, ...).
        feeds: The output that feeds a state input, by the input's name.
        zero: The state inputs, with a free first axis.
        inputs: Inputs that are data, (N, ...) by name.
        streams: The stream of each row (N,).

    Returns:
        The outputs (N, ...), state included, and the state before each row (N, ...), by input.
    """
    count = len(streams)
    states = {spec.name: np.zeros((count, *_sizes(spec)), spec.dtype.numpy) for spec in zero}
    outputs: dict[str, Array] = {}
    for rows, earlier in _steps(streams):
        if earlier is not None:
            for name, output in feeds.items():
                states[name][rows] = outputs[output][earlier]
        answers = run({**{n: v[rows] for n, v in inputs.items()}, **{n: v[rows] for n, v in states.items()}})
        for name, value in answers.items():
            if name not in outputs:
                outputs[name] = np.zeros((count, *value.shape[1:]), value.dtype)
            outputs[name][rows] = value
    return outputs, states


def stream_means(values: Array, streams: Array) -> Array:
    """The mean of values (N,) over each stream (S,). Samples of one stream depend on each other, streams do not."""
    _, index = np.unique(streams, return_inverse=True)
    return np.asarray(np.bincount(index, weights=values) / np.bincount(index), dtype=np.float64)


def split_streams(
    streams: Array, digests: Sequence[bytes], shares: Sequence[float]
) -> tuple[bytes, list[Array], Array]:
    """Split rows in parts by whole streams.

    A stream is in a part by the digest of its rows, so it is always in the same part; equal streams are in one part.
    Fewer than LEAST_STREAMS streams are cut instead: each gives its first rows to the first part, and so on.

    Args:
        streams: The stream of each row (N,).
        digests: The digest of each row.
        shares: The share of the rows in each part but the last.

    Returns:
        A digest of all streams, the rows of each part in the order of the data, and the stream of each row, where a
        cut part is a stream of its own.

    Raises:
        DataError: a part would have no rows.
    """
    members = [np.flatnonzero(streams == one) for one in range(int(streams.max()) + 1)]
    keys = [hashlib.sha256(b"".join(digests[int(row)] for row in rows)).digest() for rows in members]
    order = sorted(range(len(members)), key=lambda one: keys[one])
    whole = hashlib.sha256(b"".join(keys[one] for one in order)).digest()
    bounds = [*np.cumsum(shares), 1.0]
    part_of, cut = np.zeros(len(streams), np.int64), streams.copy()
    if len(set(keys)) < LEAST_STREAMS:
        for rows in members:
            place = (np.arange(len(rows)) + 0.5) / len(rows)
            part_of[rows] = np.searchsorted(bounds, place)
        cut = streams * len(bounds) + part_of
    else:
        done, placed = 0, dict[bytes, int]()
        for one in order:
            middle = (done + len(members[one]) / 2) / len(streams)
            part_of[members[one]] = placed.setdefault(keys[one], int(np.searchsorted(bounds, middle)))
            done += len(members[one])
    parts = [np.flatnonzero(part_of == part) for part in range(len(bounds))]
    if not all(len(part) for part in parts):
        raise DataError(
            f"{len(streams)} rows in {len(members)} streams cannot be split in {len(parts)} parts of whole streams",
            advice=f"Give more streams of about the same length, at least {LEAST_STREAMS}.",
        )
    return whole, parts, cut


def _steps(streams: Array) -> list[tuple[Array, Array | None]]:
    """Each step: the rows of the streams that take it, and the row before each one; None for first rows."""
    order = np.argsort(streams, kind="stable")
    starts = np.flatnonzero(np.diff(streams[order], prepend=-1))
    lengths = np.diff([*starts, len(order)])
    position = np.arange(len(order)) - np.repeat(starts, lengths)
    steps: list[tuple[Array, Array | None]] = []
    for step in range(int(lengths.max(initial=0))):
        at = np.flatnonzero(position == step)
        steps.append((order[at], order[at - 1] if step else None))
    return steps


def _sizes(spec: TensorSpec) -> list[int]:
    return [1 if size is None else size for size in spec.shape[1:]]
