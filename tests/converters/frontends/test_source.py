"""Running a source model: its rows go through its framework in parts that bound memory."""

from __future__ import annotations

import numpy as np
from onnx import helper

from converters.frontends.onnx import canonical
from converters.frontends.source import SOURCE_BYTES, answers_of
from tests.simulators.models import model_of

SIZE = 512  # of a side: a row of eight channels takes 8 MB


def wide(size: int):
    weights = {"w": np.ones((8, 1, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    return canonical(model_of(nodes, {"x": ["N", 1, size, size]}, {"y": ["N", 8, 1, 1]}, weights), "test")


def calls_of(graph, rows: int) -> tuple[list[int], np.ndarray]:
    """How many rows each call of the source had, and the joined answers."""
    size = graph.inputs[0].shape[-1]
    x = np.arange(rows, dtype=np.float32).reshape(rows, 1, 1, 1) * np.ones((1, 1, size, size), np.float32)
    calls = []

    def run(inputs):
        calls.append(len(inputs["x"]))
        return {"y": inputs["x"].mean(axis=(2, 3), keepdims=True)}

    return calls, answers_of(graph, run)({"x": x})["y"]


def test_rows_of_large_tensors_go_in_parts():
    """A framework takes several times the bytes of the tensors, so its parts are smaller than those of the graph."""
    graph = wide(SIZE)
    most = graph.rows_at_once(most_bytes=SOURCE_BYTES)
    assert most < graph.rows_at_once()
    calls, answers = calls_of(graph, 2 * most + 1)
    assert calls == [most, most, 1]
    assert answers.ravel().tolist() == [float(row) for row in range(2 * most + 1)]


def test_rows_of_small_tensors_go_at_once():
    """The noise of other batch sizes is measured beside one batch."""
    assert calls_of(wide(8), 32)[0] == [32]
