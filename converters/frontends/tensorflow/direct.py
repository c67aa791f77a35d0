"""Convert Keras and SavedModel directly to a float .tflite. Runs in the TensorFlow process (framework_process.py).

The variables become constants first. A SavedModel of a Keras 3 model passes them to the converter as resources, and the
converter then silently writes a file without their values. Large constants then become variables of the outermost
function, which are not lost: constants of a graph would be copied over ten times.
"""

from __future__ import annotations

import gc
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from converters.frontends.tensorflow.loaded import Loaded
from converters.frontends.tensorflow.side import loaded_model
from converters.frontends.tensorflow.source_file import SourceFile
from converters.lowering import Lowered
from converters.lowering.tflite import SIGNATURE, convert_saved_model
from converters.lowering.weights import LARGE_BYTES
from converters.machine import return_memory, scratch_folder


def direct(source: SourceFile, shapes: dict[str, list[int]], outputs: list[str]) -> Lowered:
    """Convert the source model with TensorFlow's own converter.

    Args:
        source: The source model.
        shapes: The sizes of each input with a batch of 1, by its name, in the order wanted in the file.
        outputs: The source's names, in the order wanted in the file.

    Raises:
        ConversionError: The model needs operators that LiteRT lacks, or the converter failed.
    """
    with scratch_folder(prefix="edgekit-direct-") as folder:
        _save(source, shapes, outputs, folder)
        gc.collect()  # functions and copies of the weights: the converter needs several times the memory of the weights
        return_memory()
        data = convert_saved_model(folder)
    return Lowered(data, [() for _ in shapes], [() for _ in outputs])


def _save(source: SourceFile, shapes: dict[str, list[int]], outputs: list[str], folder: str) -> None:
    """Write the source model to `folder` as a SavedModel for the converter."""
    loaded = loaded_model(source)
    dtypes = {spec.name: spec.dtype for spec in loaded.inputs}
    specs = [tf.TensorSpec(shape, dtypes[n], name=f"input_{i}") for i, (n, shape) in enumerate(shapes.items())]
    run: Any = _traced(loaded, list(shapes), outputs, specs)
    module = tf.Module()
    if run.variables:  # a model from TensorFlow 1's loader has constants already, and could not be saved after this
        run = _Frozen(convert_variables_to_constants_v2(run, lower_control_flow=False))
        module.weights = list(run.weights.values())
        return_memory()

    def call(*tensors: Any) -> dict[str, Any]:
        return {f"output_{index}": tf.identity(value) for index, value in enumerate(run(*tensors))}

    module.call = tf.function(call, input_signature=specs, autograph=False)
    tf.saved_model.save(module, folder, signatures={SIGNATURE: module.call})


class _Frozen:
    """A function without variables, to be traced into another; its large constants become `weights`, by name."""

    def __init__(self, function: Any) -> None:
        self._graph = function.graph.as_graph_def()
        self._inputs, self._outputs = [[tensor.name for tensor in part] for part in (function.inputs, function.outputs)]
        self.weights: dict[str, Any] = {}
        for node in self._graph.node:
            if node.op == "Const" and node.attr["value"].ByteSize() >= LARGE_BYTES:
                value = tf.make_ndarray(node.attr["value"].tensor)
                if value.nbytes < LARGE_BYTES or value.dtype.kind != "f":
                    continue
                self.weights[f"{node.name}:0"] = tf.Variable(value, trainable=False)
                node.op = "Placeholder"
                del node.attr["value"]
                node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())

    def __call__(self, *tensors: Any) -> list[Any]:
        """The outputs, as a part of the function that is being traced."""
        given = {
            **dict(zip(self._inputs, tensors, strict=True)),
            **{n: v.read_value() for n, v in self.weights.items()},
        }
        found: list[Any] = tf.import_graph_def(self._graph, given, self._outputs, name="")
        return found


def _traced(loaded: Loaded, inputs: list[str], outputs: list[str], specs: list[Any]) -> Any:
    """The source as a function from `inputs` to a list of `outputs`, in this order."""
    order = [inputs.index(spec.name) for spec in loaded.inputs]
    indices = [loaded.outputs.index(name) for name in outputs]

    def call(*tensors: Any) -> list[Any]:
        answers = loaded.function(*(tensors[index] for index in order))
        return [tf.identity(answers[index]) for index in indices]

    return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()
