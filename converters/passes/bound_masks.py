"""Replace infinite and nearly infinite constants of attention masks by a number that a softmax cannot tell from them.

Sums of the lowest float overflow to infinity, and calibration then has no range for any tensor of the mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converters.calibration.masks import masked, steps_of
from converters.graph.graph import Graph

BEYOND = 1e30
MASK = 1e9  # float32 steps are 64 there: scores of any size vanish beside it


class BoundMasks:
    """Bounds constants that are added to scores, or chosen instead of them, before a softmax."""

    name = "bound-masks"

    def applies(self, graph: Graph) -> bool:
        """True if such a constant is beyond the bound."""
        return bool(_found(graph))

    def run(self, graph: Graph) -> Graph:
        """The graph with bounded constants; other readers of a constant keep it as it is."""
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        made: set[str] = set()
        for index, place, name in _found(graph):
            bounded = f"{name}.bounded"
            model.graph.node[index].input[place] = bounded
            if bounded not in made:
                made.add(bounded)
                value = np.clip(graph.constants[name], -MASK, MASK).astype(graph.constants[name].dtype)
                model.graph.initializer.append(numpy_helper.from_array(value, bounded))
        read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
        kept: list[Any] = [tensor for tensor in model.graph.initializer if tensor.name in read]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        return Graph(model)

    def holds(self, graph: Graph) -> bool:
        """No such constant is left."""
        return not self.applies(graph)


def _found(graph: Graph) -> list[tuple[int, int, str]]:
    """Index of the node, place of the input, and name of each such constant."""
    steps, limits = steps_of(graph)
    huge = {name for name, (low, high) in limits.items() if low < -BEYOND or high > BEYOND}
    return [
        (index, place, name)
        for index in sorted(masked(steps, limits))
        for place, name in enumerate(steps[index].inputs)
        if name in huge
    ]
