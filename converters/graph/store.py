"""Keeps graphs by key: those used last in memory, the others in files. Each graph holds all its weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

import onnx

from converters.graph.graph import Graph

MEMORY_BYTES = 64 << 20  # of all graphs in memory


class GraphStore:
    """Graphs by key. Making one again can take a minute, and reading a file takes a fraction of a second.

    Args:
        folder: Where the files go; it must exist once memory is full.
        name: Start of the files' names.
        most: How many graphs to keep; the ones used longest ago go. 0 for no limit.
        together: How many graphs are used together: so many of those used last stay in memory in any case.
    """

    def __init__(self, folder: Path, name: str, *, most: int = 0, together: int = 1) -> None:
        self._folder, self._name, self._most, self._together = folder, name, most, together
        self._graphs: OrderedDict[Hashable, Graph | None] = OrderedDict()  # None: in a file
        self._paths: dict[Hashable, Path] = {}
        self._files = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def __getitem__(self, key: Hashable) -> Graph:
        graph = self._graphs[key]
        if graph is None:
            graph = Graph(onnx.load(str(self._paths[key])))
        self._use(key, graph)
        return graph

    def __setitem__(self, key: Hashable, graph: Graph) -> None:
        self._forget_file(key)
        self._use(key, graph)
        while self._most and len(self._graphs) > self._most:
            oldest = next(iter(self._graphs))
            del self._graphs[oldest]
            self._forget_file(oldest)

    def _use(self, key: Hashable, graph: Graph) -> None:
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        total, count = 0, 0
        for one, kept in reversed(list(self._graphs.items())):
            if kept is None:
                continue
            total, count = total + kept.model.ByteSize(), count + 1
            if total > MEMORY_BYTES and count > self._together:
                self._write(one, kept)

    def _write(self, key: Hashable, graph: Graph) -> None:
        if key not in self._paths:
            path = self._folder / f"{self._name}-{self._files}.onnx"
            path.write_bytes(graph.to_bytes())
            self._paths[key], self._files = path, self._files + 1
        self._graphs[key] = None

    def _forget_file(self, key: Hashable) -> None:
        path = self._paths.pop(key, None)
        if path is not None:
            path.unlink(missing_ok=True)
