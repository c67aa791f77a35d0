"""Runs the user's own training loop on a pruned graph."""

from __future__ import annotations

import onnx
import tensorflow as tf

from converters.foreign_text import named
from converters.graph.graph import Graph
from converters.training.module import TrainableGraph
from converters.training.own_function import loop_of
from edgekit.errors import ConversionError
from edgekit.tensors import Array


def run_loop(model: bytes, name: str, inputs: dict[str, Array], labels: Array | None, seed: int) -> dict[str, Array]:
    """Train the serialized graph `model` by the function `name`; its new weights and biases by their constant's name.

    Args:
        model: The graph.
        name: ``module:function``, called as ``function(model, samples, labels, seed)`` with a `TrainableGraph`.
        inputs: The samples: inputs (N, ...) by name.
        labels: Their labels (N, ...); None without labels.
        seed: Seed of Python, numpy and TensorFlow, and the function's last argument.

    Raises:
        SettingsError: As `loop_of`.
        ConversionError: The function raised an error.
    """
    function = loop_of(name)
    tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(seed)
    module = TrainableGraph(Graph(onnx.load_model_from_string(model)))
    try:
        function(module, inputs, labels, seed)
    except Exception as error:  # the user's code may raise any error; it ends one candidate and not the conversion
        raise ConversionError(f"the training loop {name} failed: {named(error)}") from error
    return module.trained()
