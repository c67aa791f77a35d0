"""Runs a graph part by part on all samples, so that a layer can be changed before the rest runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.data.samples import Samples
from converters.graph.graph import Graph
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

FOLDS = 5
CHUNK_ROWS = 16
MEMORY_BYTES = 256 << 20  # of the tensors that are kept, by the sizes of one row


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
        self._last = {name: place for place, node in enumerate(self._nodes) for name in node.input}
        self._last.update(dict.fromkeys(self._outputs, len(self._nodes)))
        self._live: dict[str, list[Array]] = {
            name: [chunk[name] for chunk in chunks] for name in (spec.name for spec in graph.inputs)
        }
        self._chunks = len(chunks)
        self._done = 0

    def value(self, name: str) -> list[Array] | None:
        """The values of tensor `name` for each chunk; None where it was dropped already."""
        place = self._makers.get(name)
        if place is not None and place >= self._done:
            self._advance(place + 1, name)
        return self._live.get(name)

    def change(self, constants: Mapping[str, Array], biases: Mapping[str, Array]) -> None:
        """Change constants by name, and give a bias to nodes without one, by their first output; before they run."""
        self._constants.update(constants)
        for output, bias in biases.items():
            place, name = self._makers[output], f"{output}.bias"
            node = onnx.NodeProto()
            node.CopyFrom(self._nodes[place])
            node.input[:] = [*node.input[:2], name]
            self._nodes[place], self._constants[name] = node, bias

    def answers(self) -> dict[str, Array]:
        """The outputs of the graph (N, ...), all chunks together."""
        if self._done < len(self._nodes):
            self._advance(len(self._nodes), "")
        return {name: np.concatenate(self._live[name]) for name in self._outputs}

    def _advance(self, end: int, wanted: str) -> None:
        part = self._nodes[self._done : end]
        made = {name for node in part for name in node.output if name}
        kept = [name for name in made if self._last.get(name, -1) >= end or name == wanted]
        read = dict.fromkeys(name for node in part for name in node.input if name and name not in made)
        inputs = [name for name in read if name not in self._constants]
        if kept:
            runtime = OnnxRuntime(self._model(part, inputs, read, sorted(kept)), threads=1, quiet=True)
            try:
                runs = [runtime.run({name: self._live[name][i] for name in inputs}) for i in range(self._chunks)]
            finally:
                runtime.close()
            self._live.update({name: [run[name] for run in runs] for name in kept})
        self._done = end
        for name in [name for name in self._live if self._last.get(name, -1) < end and name != wanted]:
            del self._live[name]

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


def chunks_of(graph: Graph, samples: Samples) -> list[dict[str, Array]]:
    """The inputs of `samples` in chunks, at least one per fold where there are enough rows.

    Large models take fewer rows, so that the tensors of all rows fit into memory.
    """
    rows = min(len(samples), rows_that_fit(graph))
    each = max(1, min(CHUNK_ROWS, rows // (2 * FOLDS))) if graph.free_batch else 1
    inputs = samples.inputs
    return [{name: value[at : at + each] for name, value in inputs.items()} for at in range(0, rows - each + 1, each)]


def rows_that_fit(graph: Graph) -> int:
    """Number of rows whose largest tensors fit into the memory bound, at least 10."""
    sizes = [math.prod(size or 1 for size in shape) * 4 for shape in graph.with_batch(1).shapes.values()]
    largest = sum(sorted(sizes)[-4:]) or 1
    return max(2 * FOLDS, MEMORY_BYTES // largest)
