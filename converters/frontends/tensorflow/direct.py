"""Convert Keras and SavedModel directly to a float .tflite. Runs in the TensorFlow process (framework_process.py).

The variables become constants first. A SavedModel of a Keras 3 model passes them to the converter as resources, and the
converter then silently writes a file without their values.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from converters.frontends.tensorflow.loaded import Loaded
from converters.frontends.tensorflow.side import loaded_model
from converters.frontends.tensorflow.source_file import SourceFile
from converters.lowering import Lowered
from converters.lowering.tflite import SIGNATURE, convert_saved_model
from converters.machine import scratch_folder


def direct(source: SourceFile, shapes: dict[str, list[int]], outputs: list[str]) -> Lowered:
    """Convert the source model with TensorFlow's own converter.

    Args:
        source: The source model.
        shapes: The sizes of each input with a batch of 1, by its name, in the order wanted in the file.
        outputs: The source's names, in the order wanted in the file.

    Raises:
        ConversionError: The model needs operators that LiteRT lacks, or the converter failed.
    """
    loaded = loaded_model(source)
    dtypes = {spec.name: spec.dtype for spec in loaded.inputs}
    specs = [tf.TensorSpec(shape, dtypes[n], name=f"input_{i}") for i, (n, shape) in enumerate(shapes.items())]
    traced = _traced(loaded, list(shapes), outputs, specs)
    if traced.variables:  # a model from TensorFlow 1's loader has constants already, and could not be saved after this
        traced = convert_variables_to_constants_v2(traced, lower_control_flow=False)

    def call(*tensors: Any) -> dict[str, Any]:
        return {f"output_{index}": tf.identity(value) for index, value in enumerate(traced(*tensors))}

    module = tf.Module()
    module.call = tf.function(call, input_signature=specs, autograph=False)
    with scratch_folder(prefix="edgekit-direct-") as folder:
        tf.saved_model.save(module, folder, signatures={SIGNATURE: module.call})
        data = convert_saved_model(folder)
    return Lowered(data, [() for _ in shapes], [() for _ in outputs])


def _traced(loaded: Loaded, inputs: list[str], outputs: list[str], specs: list[Any]) -> Any:
    """The source as a function from `inputs` to a list of `outputs`, in this order."""
    order = [inputs.index(spec.name) for spec in loaded.inputs]
    indices = [loaded.outputs.index(name) for name in outputs]

    def call(*tensors: Any) -> list[Any]:
        answers = loaded.function(*(tensors[index] for index in order))
        return [tf.identity(answers[index]) for index in indices]

    return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()
