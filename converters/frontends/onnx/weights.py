"""Checks the weights of a model."""

from __future__ import annotations

import numpy as np
import onnx

from converters.frontends.onnx.nodes import all_nodes
from converters.graph.graph import Graph
from edgekit.errors import ModelFormatError

TRAINED_OPERATORS = ("BatchNormalization", "Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


def require_finite_weights(model: onnx.ModelProto, source: str) -> None:
    """Refuse NaN in constants, and infinity in trained weights; infinity is valid only in masks."""
    trained = {name for node in all_nodes(model.graph) if node.op_type in TRAINED_OPERATORS for name in node.input}
    for name, value in Graph(model).constants.items():
        if value.dtype.kind != "f" or np.isfinite(value).all():
            continue
        undefined, infinite = int(np.isnan(value).sum()), int(np.isinf(value).sum())
        if undefined or name in trained:
            values = f"{undefined} undefined values (NaN)" if undefined else f"{infinite} infinite values"
            raise ModelFormatError(
                f"{source}: weight {name} contains {values}",
                advice="The training diverged, or the file is damaged. Export the model from a good checkpoint.",
            )
