"""Keras and SavedModel straight to a float .tflite. Runs in the TensorFlow process (framework_process.py).

The variables become constants first: a SavedModel of a Keras 3 model hands them to the converter as resources, which it
keeps as such, without their values and without a word.
"""

from __future__ import annotations

import tempfile
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from converters.frontends.tensorflow_side import Loaded, loaded_model
from converters.lowering import Lowered
from converters.lowering.tflite import SIGNATURE, convert_saved_model


def direct(path: str, inputs: list[str], outputs: list[str]) -> Lowered:
    """The source model, exported before, as TensorFlow's own converter makes it, with a batch of 1.

    Args:
        path: As it was exported.
        inputs, outputs: The source's names in the order in which the file shall have them.

    Raises:
        ConversionError: it needs operators that LiteRT lacks, or the converter failed.
    """
    loaded = loaded_model(path)
    specs = [_fixed(loaded, name, f"input_{place}") for place, name in enumerate(inputs)]
    traced = _traced(loaded, inputs, outputs, specs)
    if traced.variables:  # what is constant already, from TensorFlow 1's loader, could not be saved after this
        traced = convert_variables_to_constants_v2(traced, lower_control_flow=False)

    def call(*tensors: Any) -> dict[str, Any]:
        return {f"output_{place}": tf.identity(value) for place, value in enumerate(traced(*tensors))}

    module = tf.Module()
    module.call = tf.function(call, input_signature=specs, autograph=False)
    with tempfile.TemporaryDirectory(prefix="edgekit-direct-") as folder:
        tf.saved_model.save(module, folder, signatures={SIGNATURE: module.call})
        data = convert_saved_model(folder)
    return Lowered(data, [() for _ in inputs], [() for _ in outputs])


def _fixed(loaded: Loaded, name: str, called: str) -> Any:
    spec = next(spec for spec in loaded.inputs if spec.name == name)
    return tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, name=called)


def _traced(loaded: Loaded, inputs: list[str], outputs: list[str], specs: list[Any]) -> Any:
    """A function that takes `inputs` and gives `outputs`, as a list in this order."""
    order = [inputs.index(spec.name) for spec in loaded.inputs]
    places = [loaded.outputs.index(name) for name in outputs]

    def call(*tensors: Any) -> list[Any]:
        answers = loaded.function(*(tensors[place] for place in order))
        return [tf.identity(answers[place]) for place in places]

    return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()
