"""Graphs that do not fit into memory together go to files and come back the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.graph import store as module
from converters.graph.graph import Graph
from converters.graph.store import GraphStore


@pytest.fixture
def graphs() -> list[Graph]:
    return [graph_of(size) for size in (300, 400, 500)]


def graph_of(size: int) -> Graph:
    weights = numpy_helper.from_array(np.arange(size, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name in "xy")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], initializer=[weights]))
    return Graph(model)


def test_graphs_beyond_memory_are_read_from_files(graphs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", graphs[0].model.ByteSize() + graphs[1].model.ByteSize())
    store = GraphStore(tmp_path, "base")
    for number, graph in enumerate(graphs):
        store[number] = graph
    assert store[2] is graphs[2]
    written = len(list(tmp_path.iterdir()))
    assert written >= 1
    again = store[0]
    assert again is not graphs[0]
    assert again.to_bytes() == graphs[0].to_bytes()
    assert store[0] is again
    for _ in range(3):  # nothing is written twice
        assert [store[number].to_bytes() for number in range(3)] == [graph.to_bytes() for graph in graphs]
    assert len(list(tmp_path.iterdir())) <= len(graphs)


def test_the_oldest_graphs_go_with_their_files(graphs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", 0)
    store = GraphStore(tmp_path, "prepared", most=2)
    for number, graph in enumerate(graphs):
        store[number] = graph
    assert 0 not in store
    assert len(store) == 2
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(KeyError):
        store[0]


def test_a_graph_stored_anew_replaces_its_file(graphs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", 0)
    store = GraphStore(tmp_path, "base")
    store["a"], store["b"], store["a"], store["c"] = graphs[0], graphs[1], graphs[2], graphs[1]
    assert store["a"].to_bytes() == graphs[2].to_bytes()
    assert store["b"].to_bytes() == graphs[1].to_bytes()


def test_graphs_that_are_used_together_stay_in_memory(graphs, tmp_path: Path, monkeypatch) -> None:
    """A pair that is larger than the memory is read from files once, not in turn at each use."""
    monkeypatch.setattr(module, "MEMORY_BYTES", 0)
    store = GraphStore(tmp_path, "base", together=2)
    store["other"], store["free"], store["fixed"] = graphs
    assert (store["free"], store["fixed"]) == (graphs[1], graphs[2])
    again = store["other"]
    assert store["other"] is again
    pair = store["free"], store["fixed"]
    assert (store["free"], store["fixed"]) == pair
