"""Names the batch of a model."""

from __future__ import annotations

import onnx

from converters.graph.graph import BATCH
from edgekit.errors import ModelFormatError


def name_batch(model: onnx.ModelProto, source: str) -> None:
    """Name the first axis of every input and output ``batch``, unless all of them are fixed to 1.

    Raises:
        ModelFormatError: An input or output has no axes, a batch other than 1, or another free axis.
    """
    fixed = []
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims:
            raise ModelFormatError(f"{source}: {value.name} has no axes, expected the batch as its first")
        fixed.append(dims[0].HasField("dim_value"))
        if fixed[-1] and dims[0].dim_value != 1:
            raise ModelFormatError(
                f"{source}: {value.name} has a first axis of {dims[0].dim_value}, expected a free batch or 1",
                advice="Export the model with a free (dynamic) batch axis.",
            )
        for axis, dim in enumerate(dims):
            if axis and not dim.HasField("dim_value"):
                raise ModelFormatError(
                    f"{source}: {value.name} has a free axis {axis} ({dim.dim_param or 'unnamed'}), "
                    "expected only the batch to be free",
                    advice="Export the model with fixed sizes for every axis but the first.",
                )
    if not all(fixed):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
