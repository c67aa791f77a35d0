"""Write every Resize with one scale for each axis: newer operator sets may name only the axes that change.

ONNX Runtime's optimizer ignores `axes` when it moves transposes, as it does around int8 convolutions: the model then
fails at run time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converters.graph.graph import Graph, attributes
from edgekit.tensors import Array


class PlainResize:
    """Replaces `axes` of each Resize, and its sizes with them, by scales for all axes, where the sizes are known."""

    name = "plain-resize"

    def applies(self, graph: Graph) -> bool:
        """True if a Resize names axes and its scales can be computed."""
        return any(_scales(graph, node) is not None for node in graph.nodes)

    def run(self, graph: Graph) -> Graph:
        """The graph with scales for all axes."""
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        for node in model.graph.node:
            scales = _scales(graph, node)
            if scales is None:
                continue
            name = f"{node.output[0]}.scales"
            model.graph.initializer.append(numpy_helper.from_array(scales, name))
            del node.input[1:]
            node.input.extend(["", name])
            kept = [entry for entry in node.attribute if entry.name not in ("axes", "keep_aspect_ratio_policy")]
            del node.attribute[:]
            node.attribute.extend(kept)
        return Graph(model)

    def holds(self, graph: Graph) -> bool:
        """No such Resize is left."""
        return not self.applies(graph)


def _scales(graph: Graph, node: Any) -> Array | None:
    """The scale of each axis (rank,) float32 of a Resize that names axes; None for any other node."""
    attrs = attributes(node)
    shape = graph.shapes.get(node.input[0]) if node.op_type == "Resize" and "axes" in attrs else None
    plain = attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if shape is None or not plain or attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    axes = [int(axis) % len(shape) for axis in attrs["axes"]]
    given = [graph.constants.get(name) for name in [*node.input, "", "", ""][2:4]]
    scales = np.ones(len(shape), np.float32)
    if given[0] is not None and given[0].size:
        scales[axes] = given[0]
        return scales
    if given[1] is None or any(shape[axis] is None for axis in axes):
        return None
    for axis, wanted in zip(axes, given[1].tolist(), strict=True):
        size = int(shape[axis] or 1)
        scales[axis] = np.float32(wanted / size)
        while int(np.floor(scales[axis] * size)) < wanted:  # rounding must not lose a row
            scales[axis] = np.nextafter(scales[axis], np.float32(np.inf))
    return scales
