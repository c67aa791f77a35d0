"""The canonical graph as a tf.Module whose weights and biases can be trained, whatever its source was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from converters.graph.graph import Graph
from converters.lowering.execute import execute
from converters.lowering.values import identity, of
from converters.passes.weights import dense_layers
from edgekit.tensors import Array


class TrainableGraph(tf.Module):  # type: ignore[misc]
    """A graph whose convolutions and dense layers have variables as weights and biases; all else is constant.

    Args:
        graph: The canonical graph. One with a fixed batch runs row by row.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(name="model")
        self._graph = graph
        self._graphs: dict[int, Graph] = {}
        constants = graph.constants
        self.constants = {name: tf.Variable(constants[name], name=_plain(name)) for name in trained_names(graph)}

    def __call__(self, inputs: Any) -> dict[str, Any]:
        """The outputs (N, ...) by name.

        Args:
            inputs: The inputs (N, ...) by name, arrays or tensors; for a model with one input also that input alone.
        """
        values = self.tensors(inputs, [spec.name for spec in self._graph.outputs])
        return {spec.name: values[spec.name] for spec in self._graph.outputs}

    def tensors(self, inputs: Any, names: list[str]) -> dict[str, Any]:
        """The tensors `names` (N, ...) of the graph for `inputs`, as `__call__` takes them."""
        given = inputs if isinstance(inputs, Mapping) else {self._graph.inputs[0].name: inputs}
        rows = [tf.convert_to_tensor(given[spec.name], spec.dtype.numpy) for spec in self._graph.inputs]
        count = int(rows[0].shape[0])
        if self._graph.free_batch:
            return self._run(rows, count, names)
        parts = [self._run([row[at : at + 1] for row in rows], 1, names) for at in range(count)]
        return {name: tf.concat([part[name] for part in parts], axis=0) for name in names}

    def trained(self) -> dict[str, Array]:
        """The values of the variables by the name of their constant."""
        return {name: variable.numpy() for name, variable in self.constants.items()}

    def _run(self, rows: list[Any], count: int, names: list[str]) -> dict[str, Any]:
        if count not in self._graphs:
            self._graphs[count] = self._graph.with_batch(count)
        graph = self._graphs[count]
        values = {spec.name: of(row) for spec, row in zip(graph.inputs, rows, strict=True)}
        trained = {name: tf.convert_to_tensor(variable) for name, variable in self.constants.items()}
        execute(graph, values, trained=trained)
        return {name: tf.convert_to_tensor(values[name].in_order(identity(values[name].rank))) for name in names}


def trained_names(graph: Graph) -> list[str]:
    """The float constants that are weights or biases of convolutions and dense layers, in order of execution."""
    constants, names = graph.constants, []
    for layer in dense_layers(graph):
        for name in (layer.weight_name, layer.bias_name()):
            if name is not None and constants[name].dtype == np.float32:
                names.append(name)
    return list(dict.fromkeys(names))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", name).lstrip("_.") or "constant"
