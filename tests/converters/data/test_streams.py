"""Streams in data: ids, rolling the state in order, splits of whole streams, and means over streams."""

from __future__ import annotations

import numpy as np
import pytest

from converters.data.streams import LEAST_STREAMS, roll, split_streams, stream_ids, stream_means
from edgekit.errors import DataError
from edgekit.tensors import Array, DType, TensorSpec

SHARES = (0.2, 0.2)


def summing(inputs: dict[str, Array]) -> dict[str, Array]:
    """A model whose state is the sum of its inputs."""
    total = inputs["h"] + inputs["x"]
    return {"y": 2 * total, "hn": total}


def test_ids_are_numbers_or_texts_in_the_order_of_their_first_rows() -> None:
    """Interleaved rows are one stream; without ids all rows are one."""
    assert stream_ids(np.array(["b", "a", "b", "c"]), 4).tolist() == [0, 1, 0, 2]
    assert stream_ids(np.array([9, 9, 4]), 3).tolist() == [0, 0, 1]
    assert stream_ids(None, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("values", [np.zeros((3, 1), np.int64), np.zeros(2, np.int64), np.zeros(3)])
def test_other_ids_are_refused(values: Array) -> None:
    """The message has what was found."""
    with pytest.raises(DataError, match="expected an id for each of the 3 rows"):
        stream_ids(values, 3)


def test_every_stream_is_rolled_in_order_from_zero() -> None:
    """Streams of different lengths, interleaved, take their steps together; the state before each row is returned."""
    streams = np.array([0, 1, 0, 0, 1, 2])
    x = np.array([1, 10, 2, 3, 20, 100], np.float32)[:, None]
    calls = []

    def counted(inputs: dict[str, Array]) -> dict[str, Array]:
        calls.append(len(inputs["x"]))
        return summing(inputs)

    zero = [TensorSpec("h", DType.FLOAT32, (None, 1))]
    outputs, states = roll(counted, {"h": "hn"}, zero, {"x": x}, streams)
    assert outputs["y"].ravel().tolist() == [2, 20, 6, 12, 60, 200]
    assert states["h"].ravel().tolist() == [0, 0, 1, 3, 10, 0]
    assert calls == [3, 2, 1]


def test_a_split_keeps_streams_whole() -> None:
    """The parts do not depend on the order of the streams; shares are near those asked for."""
    streams = np.repeat(np.arange(20), 5)
    digests = [bytes([stream, row]) for row, stream in enumerate(streams)]
    whole, parts, cut = split_streams(streams, digests, SHARES)
    assert [len(part) for part in parts] == [20, 20, 60]
    assert sum(len(set(streams[part].tolist())) for part in parts) == 20
    assert (cut == streams).all()
    turned = np.concatenate([np.arange(50, 100), np.arange(50)])
    again, others, _ = split_streams(stream_ids(streams[turned], 100), [digests[row] for row in turned], SHARES)
    assert again == whole
    assert [set(turned[part]) for part in others] == [set(part) for part in parts]


def test_equal_streams_are_in_one_part() -> None:
    """A copy of a stream cannot be calibrated with and prove something too."""
    streams = np.repeat(np.arange(12), 2)
    digests = [bytes([stream // 2, row % 2]) for row, stream in enumerate(streams)]
    _, parts, _ = split_streams(streams, digests, SHARES)
    for part in parts:
        assert all((streams[part] // 2 == pair).sum() in (0, 4) for pair in range(6))


@pytest.mark.parametrize("count", range(1, LEAST_STREAMS))
def test_few_streams_are_cut(count: int) -> None:
    """Each stream has rows in each part, its parts are streams of their own, and keep the order of time."""
    streams = np.repeat(np.arange(count), 10)
    _, parts, cut = split_streams(streams, [bytes([row]) for row in range(len(streams))], SHARES)
    assert [len(part) for part in parts] == [2 * count, 2 * count, 6 * count]
    assert len(set(cut.tolist())) == 3 * count
    assert parts[0].max() < parts[2].max()


def test_too_few_rows_are_refused() -> None:
    """The error says what to give."""
    with pytest.raises(DataError, match="2 rows in 1 streams cannot be split") as caught:
        split_streams(np.zeros(2, np.int64), [b"a", b"b"], SHARES)
    assert "at least 5" in caught.value.advice


def test_means_over_streams() -> None:
    """Each stream counts equally, whatever its length."""
    assert stream_means(np.array([1.0, 3.0, 10.0]), np.array([4, 4, 7])).tolist() == [2.0, 10.0]
