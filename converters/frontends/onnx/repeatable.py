"""Refuses models whose answer to an input is not its own: random numbers, and layers in training mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from converters.frontends.interface.protobuf import inputs_of
from converters.frontends.interface.trial import opened, plausible_row
from converters.frontends.onnx.nodes import RANDOM, all_nodes, attribute_of
from converters.frontends.onnx.opset import opset_of
from converters.graph.graph import label
from edgekit.errors import DataError, ModelFormatError, RuntimeLoadError

TRAINING_MODE_OPSET = 14  # from here on the operator has an attribute for it
EVAL = "Export the model in inference mode: call model.eval() before torch.onnx.export or torch.export.export."
NOISE = (
    "Fix the input that scales the noise, as in --fix noise_scale=0; or export the model with the noise as an input; "
    "or cut it before this layer with --cut OUTPUT[,OUTPUT]."
)


def require_repeatable(model: onnx.ModelProto, source: str) -> None:
    """Check that the model answers the same inputs alike, each time. See `require_inference` for normalizations.

    Models with operators that draw random numbers are run twice: where the numbers change nothing, they are taken.

    Args:
        model: A valid model, whose free axes besides the batch were settled.
        source: The model's path, for messages.

    Raises:
        ModelFormatError: Two runs differ.
    """
    drawing = [node for node in all_nodes(model.graph) if node.op_type in RANDOM or _is_training_dropout(node)]
    if drawing and _runs_differ(model):
        node = drawing[0]
        raise ModelFormatError(
            f"{source}: {node.op_type} (layer {label(node)!r}) draws random numbers, so two runs of the model on the "
            "same inputs differ, and no candidate can be compared with it",
            advice=EVAL if node.op_type == "Dropout" else NOISE,
        )


def require_inference(model: onnx.ModelProto, source: str) -> None:
    """Check that normalizations use their own statistics, before the opset is changed: newer ones lack the old form.

    Raises:
        ModelFormatError: A BatchNormalization uses the statistics of each batch.
    """
    for node in all_nodes(model.graph):
        if node.op_type == "BatchNormalization" and not node.domain and _is_training_norm(node, opset_of(model)):
            raise ModelFormatError(
                f"{source}: BatchNormalization (layer {label(node)!r}) is in training mode, so the answer to a row "
                "depends on the other rows",
                advice=EVAL,
            )


def _is_training_norm(node: Any, version: int) -> bool:
    """By its attribute; before opset 14, the form for training has more than one output."""
    if version < TRAINING_MODE_OPSET:
        return sum(1 for name in node.output if name) > 1
    return bool(attribute_of(node, "training_mode", 0) == 1)


def _is_training_dropout(node: Any) -> bool:
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def _runs_differ(model: onnx.ModelProto) -> bool:
    row = plausible_row(model, dict.fromkeys(value.name for value in inputs_of(model)), 0)
    try:
        with opened(model) as runtime:
            first, second = runtime.run(row), runtime.run(row)
    except (RuntimeLoadError, DataError):  # what does not run on trial inputs is refused elsewhere, or not at all
        return False
    return any(not np.array_equal(value, second[name]) for name, value in first.items())
