"""Loaders for Keras 2 and TensorFlow 1 models that current loaders refuse. Runs in the TensorFlow process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

# Keras 2 wrote `groups` for every convolution; these layers no longer accept it.
UNGROUPED = ("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D", "Conv1DTranspose",
             "Conv2DTranspose", "Conv3DTranspose")  # fmt: skip

Frozen = tuple[Callable[..., list[Any]], dict[str, Any], list[str]]


def keras2_layers() -> dict[str, type[Any]]:
    """Classes by name that replace Keras 3's own while loading a Keras 2 .h5."""
    return {name: _ungrouped(getattr(keras.layers, name)) for name in UNGROUPED}


def _ungrouped(layer: type[Any]) -> type[Any]:
    def build(self: Any, *args: Any, groups: int = 1, **options: Any) -> None:
        if groups != 1:
            raise ValueError(f"{layer.__name__} with groups={groups}, expected 1")
        layer.__init__(self, *args, **options)

    return type(layer.__name__, (layer,), {"__init__": build})


def frozen_saved_model(path: str, name: str) -> Frozen:
    """Load the signature `name` with the loader of TensorFlow 1, which reads only the graph and weights.

    The current loader also builds the training objects, and fails on the slots of old optimizers.

    Returns:
        The signature as a function of its inputs in order, their TensorSpecs by name, and the names of its outputs.

    Raises:
        ValueError, LookupError, OSError, RuntimeError, tf.errors.OpError: Loading failed, or there is no signature.
    """
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        signature = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], path).signature_def[name]
        inputs, outputs = dict(signature.inputs), dict(signature.outputs)
        nodes = [value.name.partition(":")[0] for value in outputs.values()]
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), nodes)
    whole = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(frozen, name=""), [])
    pruned = whole.prune([v.name for v in inputs.values()], [v.name for v in outputs.values()])
    specs = {
        key: tf.TensorSpec(tf.TensorShape(value.tensor_shape), tf.as_dtype(value.dtype))
        for key, value in inputs.items()
    }

    def call(*tensors: Any) -> list[Any]:
        return list(pruned(*tensors))

    return call, specs, list(outputs)
