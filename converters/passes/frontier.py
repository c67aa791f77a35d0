"""Values of a graph's tensors at one place, for passes that change one layer after another.

Such a pass reads each layer behind the layers that it has changed. To run the graph from its inputs for every layer
would take the square of the depth. A Frontier keeps the values that later nodes read, and runs only what comes next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper

from converters.data.samples import Samples
from converters.graph.graph import Graph
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

MOST_BYTES = 256 << 20  # of all values that are kept
LEAST_ROWS = 16


class Frontier:
    """Values for the first rows of `samples`, from the inputs of a graph on.

    The methods take a graph each time, because a pass makes a new one for each changed layer. All of them have the same
    tensors. A node that has been passed by `move` is never run again, so its weights must be final then.

    Args:
        graph: The graph, with a batch of 1.
        samples: Its inputs (N, ...).
        rows: Use at most this many rows; fewer where their values take more than 256 MiB, but at least 16.
    """

    def __init__(self, graph: Graph, samples: Samples, rows: int) -> None:
        rows = min(rows, len(samples), max(LEAST_ROWS, MOST_BYTES // max(1, live_bytes(graph))))
        self.count = rows
        self._kept: list[dict[str, Array]] = [
            {name: values[row : row + 1] for name, values in samples.inputs.items()} for row in range(rows)
        ]
        self._done: set[str] = set()
        self._fixed = any("Sequence" in node.op_type or "Optional" in node.op_type for node in graph.nodes)

    def move(self, graph: Graph, tensor: str) -> None:
        """Move to behind the node that makes `tensor`; nothing happens where the frontier is there or further.

        It never moves in a graph with sequences, which cannot be kept; `rows` then starts from the inputs.
        """
        if self._fixed or tensor in self._kept[0] or tensor in self._done:
            return
        nodes = [node for node in graph.nodes if node.op_type != "Constant"]
        place = next((i for i, node in enumerate(nodes) if tensor in node.output), -1)
        passed = [node for node in nodes[: place + 1] if node.output[0] not in self._done]
        if not passed:
            return
        read = {name for node in nodes[place + 1 :] for name in reads(node)} | {one.name for one in graph.outputs}
        made = {name for node in passed for name in node.output if name}
        new = self._run(graph, passed, sorted(made & read))
        for kept, values in zip(self._kept, new, strict=True):
            kept.update(values)
            for name in kept.keys() - read:
                del kept[name]
        self._done |= made

    def rows(self, graph: Graph, tensor: str) -> Iterator[Array]:
        """The value of `tensor` for each row, from the frontier on; the frontier stays."""
        if tensor in self._kept[0]:
            return (kept[tensor] for kept in self._kept)
        needed, nodes = {tensor}, []
        for node in reversed(graph.nodes):
            if needed & set(node.output) and not self._kept[0].keys() >= set(node.output):
                nodes.append(node)
                needed |= reads(node) - self._kept[0].keys()
        return (values[tensor] for values in self._run(graph, nodes[::-1], [tensor]))

    def _run(self, graph: Graph, nodes: list[Any], outputs: list[str]) -> Iterator[dict[str, Array]]:
        """The values of `outputs` for each row, by running `nodes`."""
        nodes = [node for node in nodes if node.op_type != "Constant"]
        used = {name for node in nodes for name in reads(node)}
        model = onnx.ModelProto()
        model.ir_version = graph.model.ir_version
        model.opset_import.extend(graph.model.opset_import)
        model.graph.name = "part"
        model.graph.node.extend(one for one in graph.nodes if one.op_type == "Constant" and one.output[0] in used)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(one for one in graph.model.graph.initializer if one.name in used)
        inputs = [name for name in self._kept[0] if name in used]
        for name in inputs:
            value = self._kept[0][name]
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            model.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
        runtime = OnnxRuntime(model.SerializeToString(), threads=1)
        try:
            for kept in self._kept:
                yield runtime.run({name: kept[name] for name in inputs})
        finally:
            runtime.close()


def reads(node: Any) -> set[str]:
    """Names of the tensors that `node` reads, also inside its subgraphs."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else ():
            for inner in body.node:
                names |= reads(inner)
    return names


def live_bytes(graph: Graph) -> int:
    """The most bytes that a row's tensors take at one place of `graph`; unknown sizes count as 1."""
    last: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        for name in reads(node):
            last[name] = place
    sizes = {
        name: 4 * math.prod(size or 1 for size in shape)
        for name, shape in graph.shapes.items()
        if name not in graph.constants
    }
    live = {spec.name: sizes.get(spec.name, 0) for spec in graph.inputs}
    most = sum(live.values())
    for place, node in enumerate(graph.nodes):
        live.update({name: sizes.get(name, 0) for name in node.output})
        most = max(most, sum(live.values()))
        live = {name: size for name, size in live.items() if last.get(name, -1) > place}
    return most
