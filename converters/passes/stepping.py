"""Runs a graph part by part on all samples, so that a layer can be changed before the rest runs.

To run the graph from its inputs for every layer would take the square of the depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.data.samples import Samples
from converters.graph.graph import Graph, label, reads
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

CHUNK_ROWS = 16
MEMORY_BYTES = 256 << 20  # of the tensors that are kept


class Stepper:
    """Runs `graph` part by part. Tensors that later nodes read are kept, chunk by chunk; others are dropped.

    Args:
        graph: The graph.
        chunks: The inputs of each chunk of rows.
    """

    def __init__(self, graph: Graph, chunks: Sequence[Mapping[str, Array]]) -> None:
        self._graph = graph
        self._nodes = [node for node in graph.nodes if node.op_type != "Constant"]
        self._constants: dict[str, Array] = dict(graph.constants)
        self._makers = {name: place for place, node in enumerate(self._nodes) for name in node.output}
        self._outputs = [spec.name for spec in graph.outputs]
        self._last = {name: place for place, node in enumerate(self._nodes) for name in reads(node)}
        self._last.update(dict.fromkeys(self._outputs, len(self._nodes)))
        self._live: dict[str, list[Array]] = {
            name: [chunk[name] for chunk in chunks] for name in (spec.name for spec in graph.inputs)
        }
        self._chunks = len(chunks)
        self._done = 0
        # Values that are no tensors cannot be kept: such a graph runs from its inputs each time.
        self._stays = any("Sequence" in node.op_type or "Optional" in node.op_type for node in self._nodes)

    def value(self, name: str) -> list[Array] | None:
        """Run up to tensor `name`: its values for each chunk; None where it was dropped already."""
        if self._stays:
            return self.peek(name)
        place = self._makers.get(name)
        if place is not None and place >= self._done:
            self._advance(place + 1, name)
        return self._live.get(name)

    def peek(self, name: str) -> list[Array]:
        """The values of tensor `name` for each chunk, without counting its nodes as run: they can still be changed.

        Raises:
            KeyError: It was dropped already.
        """
        if name in self._live or name not in self._makers:
            return self._live[name]
        needed, part = {name}, []
        for node in reversed(self._nodes[self._done : self._makers[name] + 1]):
            if needed & set(node.output):
                part.append(node)
                needed |= reads(node)
        return [run[name] for run in self._runs(part[::-1], [name])]

    def change(self, constants: Mapping[str, Array], biases: Mapping[str, Array]) -> None:
        """Change constants by name, and give a bias to nodes without one, by their label; before they run."""
        self._constants.update(constants)
        for place in [place for place, node in enumerate(self._nodes) if label(node) in biases]:
            bias, name = biases[label(self._nodes[place])], f"{self._nodes[place].output[0]}.bias"
            node = onnx.NodeProto()
            node.CopyFrom(self._nodes[place])
            node.input[:] = [*node.input[:2], name]
            self._nodes[place], self._constants[name] = node, bias

    def answers(self) -> dict[str, Array]:
        """The outputs of the graph (N, ...), all chunks together."""
        if self._stays:
            return {name: np.concatenate(self.peek(name)) for name in self._outputs}
        if self._done < len(self._nodes):
            self._advance(len(self._nodes), "")
        return {name: np.concatenate(self._live[name]) for name in self._outputs}

    def _advance(self, end: int, wanted: str) -> None:
        part = self._nodes[self._done : end]
        made = {name for node in part for name in node.output if name}
        kept = [name for name in made if self._last.get(name, -1) >= end or name == wanted]
        if kept:
            runs = self._runs(part, sorted(kept))
            self._live.update({name: [run[name] for run in runs] for name in kept})
        self._done = end
        for name in [name for name in self._live if self._last.get(name, -1) < end and name != wanted]:
            del self._live[name]

    def _runs(self, part: Sequence[Any], wanted: Sequence[str]) -> list[dict[str, Array]]:
        """The values of `wanted` for each chunk, by running `part` on what is kept."""
        made = {name for node in part for name in node.output if name}
        read = dict.fromkeys(name for node in part for name in sorted(reads(node)) if name not in made)
        inputs = [name for name in read if name not in self._constants]
        runtime = OnnxRuntime(self._model(part, inputs, read, wanted), threads=1, quiet=True)
        try:
            return [runtime.run({name: self._live[name][i] for name in inputs}) for i in range(self._chunks)]
        finally:
            runtime.close()

    def _model(self, part: Sequence[Any], inputs: Sequence[str], read: Iterable[str], kept: Sequence[str]) -> bytes:
        model = onnx.ModelProto()
        model.ir_version = self._graph.model.ir_version
        model.opset_import.extend(self._graph.model.opset_import)
        model.graph.name = "part"
        model.graph.node.extend(part)
        for name in read:
            if name in self._constants:
                value = np.array(self._constants[name], order="C")  # keeps scalars scalars
                model.graph.initializer.append(numpy_helper.from_array(value, name))
        for name in inputs:
            value = self._live[name][0]
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            model.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in kept)
        data: bytes = model.SerializeToString()
        return data


def chunks_of(
    graph: Graph, samples: Samples, *, least: int = 1, most: int | None = None, each: int = CHUNK_ROWS
) -> list[dict[str, Array]]:
    """The inputs of the first rows of `samples` in chunks.

    Args:
        graph: The graph; one with a fixed batch takes a row at a time.
        samples: Inputs (N, ...).
        least: Make at least this many chunks where there are as many rows, also where their tensors take much memory.
        most: Take at most this many rows; None for as many as fit into memory.
        each: Largest number of rows in a chunk.
    """
    fitting = max(least, MEMORY_BYTES // max(1, graph.live_bytes))
    rows = min(len(samples), fitting, most or len(samples))
    each = max(1, min(each, rows // least)) if graph.free_batch else 1
    inputs = samples.inputs
    return [{name: value[at : at + each] for name, value in inputs.items()} for at in range(0, rows - each + 1, each)]
