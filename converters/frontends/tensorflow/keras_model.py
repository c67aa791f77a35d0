"""Loads Keras models as functions. Only the TensorFlow process (framework_process.py) imports this module."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import numpy as keras_numpy

from converters.foreign_text import SHOWN, plain_text
from converters.frontends.files.keras_layers import custom_code
from converters.frontends.tensorflow.legacy import keras2_layers
from converters.frontends.tensorflow.loaded import Loaded, input_spec, unique
from edgekit.errors import ModelFormatError

HALVES = {"float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"}
_UNKNOWN = re.compile(r"(?:Could not locate (class|function)|Unknown (layer|object|\w+ function)):? '?([\w>.]+)'?")


def load_keras(path: str, *, legacy: bool) -> Loaded:
    """Load the Keras model at `path` with float32 in place of its other float types.

    With `legacy` the file is an .h5, and its layers may have options of Keras 2.

    Raises:
        ModelFormatError: Keras cannot load the file, or the model has no inputs of known shape.
    """
    try:
        model = keras.saving.load_model(
            path, compile=False, safe_mode=True, custom_objects=keras2_layers() if legacy else None
        )
    except (ValueError, TypeError, OSError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        raise _refusal(path, error) from error
    if not getattr(model, "inputs", None):
        raise ModelFormatError(
            f"{path}: the model has no inputs of known shape",
            advice="Give the model its input before saving: keras.Input(shape) as the first layer of a Sequential "
            "model, or a functional model.",
        )
    model = _as_float32(model)
    structure = getattr(model, "_inputs_struct", None)
    names = _names(structure, model.inputs, [str(tensor.name) for tensor in model.inputs])
    inputs = [input_spec(n, _shape(t), t.dtype, path) for n, t in zip(names, model.inputs, strict=True)]
    layers = [str(tensor._keras_history.operation.name) for tensor in model.outputs]
    outputs = _names(getattr(model, "_outputs_struct", None), model.outputs, layers)

    def call(*tensors: Any) -> list[Any]:
        packed = tensors[0] if structure is None else keras.tree.pack_sequence_as(structure, list(tensors))
        with _plain_extremes():
            return list(keras.tree.flatten(model(packed, training=False)))

    return Loaded(call, inputs, outputs)


@contextlib.contextmanager
def _plain_extremes() -> Iterator[None]:
    """Let keras.ops.argmax and argmin be TensorFlow's own.

    Keras reads the sign bit of zeros first, by operations that neither ONNX nor LiteRT has. Only a tie of 0.0 and -0.0
    is decided otherwise without it.
    """
    functions = {name: getattr(keras_numpy, name) for name in ("argmax", "argmin")}
    try:
        keras_numpy.argmax, keras_numpy.argmin = _plain(tf.argmax), _plain(tf.argmin)
        yield
    finally:
        keras_numpy.argmax, keras_numpy.argmin = functions["argmax"], functions["argmin"]


def _plain(function: Any) -> Any:
    def extreme(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        x = tf.convert_to_tensor(x)
        index = function(
            tf.reshape(x, [-1]) if axis is None else x, axis=0 if axis is None else axis, output_type=tf.int32
        )
        if not keepdims:
            return index
        return tf.reshape(index, [1] * x.shape.rank) if axis is None else tf.expand_dims(index, axis)

    return extreme


def _shape(tensor: Any) -> list[int | None]:
    """The sizes of an input. A fixed batch is free: layers take any number of rows."""
    sizes = list(tensor.shape)
    return [None if sizes[0] != 1 else 1, *sizes[1:]] if sizes else []


def _names(structure: Any, tensors: list[Any], names: list[str]) -> list[str]:
    """The names of inputs or outputs: the key of a dictionary, or else the entry of `names`."""
    paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
    if len(paths) != len(tensors):
        return unique(names)
    keys = [path[-1] if path else None for path in paths]
    return unique([key if isinstance(key, str) else name for key, name in zip(keys, names, strict=True)])


def _as_float32(model: Any) -> Any:
    """The model with every layer in float32, and the same weights; the model itself if it is so already."""
    config = keras.saving.serialize_keras_object(model)
    changed = _widened(config)
    if changed == config:
        return model
    wide = keras.saving.deserialize_keras_object(changed, safe_mode=True)
    if not wide.built:
        wide.build(model.inputs[0].shape)
    wide.set_weights(
        [weights.astype("float32") if weights.dtype.kind in "fV" else weights for weights in model.get_weights()]
    )
    print(f"{model.name} has layers in other float types; all became float32")
    return wide


def _widened(value: Any, key: str = "") -> Any:
    """A configuration with float32 in place of other float types."""
    if isinstance(value, dict):
        if value.get("class_name") == "DTypePolicy" and (value.get("config") or {}).get("name") in HALVES:
            return {**value, "config": {**value["config"], "name": "float32"}}
        return {name: _widened(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_widened(item, key) for item in value)
    return "float32" if key == "dtype" and isinstance(value, str) and value in HALVES else value


def _refusal(path: str, error: Exception) -> ModelFormatError:
    missing = _UNKNOWN.search(str(error))
    if missing:
        return custom_code(path, [(missing[3], "")])
    return ModelFormatError(
        f"{path} cannot be loaded by Keras {keras.__version__}, which fails with {type(error).__name__} ({SHOWN})",
        advice="Save the model again as .keras with a recent Keras 3, with Keras's own layers only.",
        foreign_text=plain_text(error),
    )
