"""Keras and SavedModel to ONNX. Only the TensorFlow process (framework_process.py) imports this module."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from onnx import helper, numpy_helper

from converters.frontends.legacy import frozen_saved_model, keras2_layers
from edgekit.errors import ConversionError, ModelFormatError
from edgekit.tensors import Array

OPSET = 17


class Loaded:
    """A source model as a function of its input tensors in order, with the source's names."""

    def __init__(self, function: Callable[..., list[Any]], inputs: list[Any], outputs: list[str]) -> None:
        self.function, self.inputs, self.outputs = function, inputs, outputs


_loaded: dict[str, Loaded] = {}


def export_keras(path: str, legacy: bool = False) -> bytes:
    """Export the Keras model at `path` as serialized ONNX with the source's names and layout.

    With `legacy` the file is an .h5, and its layers may have options of Keras 2.

    Raises:
        ModelFormatError: Keras cannot load the file, or its inputs have no fixed shape.
    """
    try:
        model = keras.saving.load_model(
            path, compile=False, safe_mode=True, custom_objects=keras2_layers() if legacy else None
        )
    except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
        raise ModelFormatError(
            f"{path} cannot be loaded by Keras {keras.__version__}: {_first_lines(error)}",
            advice="Save the model with built-in layers only, as .keras, with a recent Keras 3.",
        ) from error
    if not getattr(model, "inputs", None):
        raise ModelFormatError(
            f"{path}: the model has no inputs of known shape",
            advice="Build it as a functional or Sequential model with keras.Input before saving.",
        )
    inputs = [tf.TensorSpec(_batched(t.shape, path), t.dtype, name=t.name) for t in model.inputs]
    names = _output_names(model)

    def call(*tensors: Any) -> list[Any]:
        return list(keras.tree.flatten(model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)))

    return _export(path, Loaded(call, inputs, names))


def export_saved_model(path: str) -> bytes:
    """Export the SavedModel's ``serving_default`` signature as serialized ONNX.

    Raises:
        ModelFormatError: TensorFlow cannot load the folder, or it has no such signature.
    """
    try:
        model = tf.saved_model.load(path)
    except (ValueError, OSError, AttributeError, IndexError, tf.errors.OpError) as error:
        return _export_frozen(path, error)
    signature = model.signatures.get("serving_default")
    if signature is None:
        raise ModelFormatError(
            f"{path} has the signatures {sorted(model.signatures) or 'none'}, expected 'serving_default'",
            advice="Export the model with model.export(path).",
        )
    specs = signature.structured_input_signature[1]
    inputs = [tf.TensorSpec(_batched(spec.shape, path), spec.dtype, name=name) for name, spec in specs.items()]
    names = list(signature.structured_outputs)

    def call(*tensors: Any) -> list[Any]:
        answers = signature(**dict(zip(specs, tensors, strict=True)))
        return [answers[name] for name in names]

    call.keep = model  # type: ignore[attr-defined]  # keeps the variables alive, which TensorFlow drops with the loaded object
    return _export(path, Loaded(call, inputs, names))


def _export_frozen(path: str, why: Exception) -> bytes:
    """Load a SavedModel with the loader of TensorFlow 1 after the usual loader failed; prints a line for the log."""
    try:
        call, specs, names = frozen_saved_model(path)
    except (ValueError, LookupError, OSError, RuntimeError, tf.errors.OpError) as error:
        raise ModelFormatError(
            f"{path} cannot be loaded by TensorFlow {tf.__version__}: {_first_lines(why)}; "
            f"nor by the loader of TensorFlow 1: {_first_lines(error)}",
            advice="Load it with the TensorFlow that wrote it, and save it as .keras.",
        ) from why
    print(f"{path} was loaded by TensorFlow 1's loader, since the usual one failed: {_first_lines(why)}")
    inputs = [tf.TensorSpec(_batched(spec.shape, path), spec.dtype, name=name) for name, spec in specs.items()]
    return _export(path, Loaded(call, inputs, names))


def loaded_model(path: str) -> Loaded:
    """The source model that this process exported from `path`.

    Raises:
        ConversionError: This process did not export `path`.
    """
    if path not in _loaded:
        raise ConversionError(f"{path} was not loaded by this process")
    return _loaded[path]


def answers(path: str, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run the exported source model on `inputs` (N, ...) and return its outputs."""
    loaded = loaded_model(path)
    outputs = loaded.function(*(tf.constant(inputs[spec.name]) for spec in loaded.inputs))
    return {name: np.asarray(value) for name, value in zip(loaded.outputs, outputs, strict=True)}


def _output_names(model: Any) -> list[str]:
    """Names of the layers that compute the outputs, as in functional models; a repeated name gets a number."""
    names: list[str] = []
    for tensor in model.outputs:
        name = str(tensor._keras_history.operation.name)
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _export(path: str, loaded: Loaded) -> bytes:
    function = tf.function(lambda *tensors: [tf.identity(t) for t in loaded.function(*tensors)])
    captures = function.get_concrete_function(*loaded.inputs).graph.captures
    model, _ = tf2onnx.convert.from_function(function, input_signature=loaded.inputs, opset=OPSET)
    _bind(model.graph, {inner.name: outer for outer, inner in captures if outer.dtype != tf.resource})
    _replace_erfc(model.graph)
    _name_fused(model.graph)
    _rename(model.graph, [spec.name for spec in loaded.inputs], loaded.outputs)
    _loaded[path] = loaded
    data: bytes = model.SerializeToString()
    return data


def _bind(graph: Any, captured: dict[str, Any]) -> None:
    """Make captured tensors constants (for example of a Normalization layer); tf2onnx lists them as inputs."""
    for value in [value for value in graph.input if value.name in captured]:
        graph.input.remove(value)
        graph.initializer.append(numpy_helper.from_array(captured[value.name].numpy(), value.name))


def _replace_erfc(graph: Any) -> None:
    """Replace Erfc by 1 - erf(x): tf2onnx keeps it (from an exact gelu), and ONNX has no such operator."""
    for node in list(graph.node):
        if node.op_type == "Erfc":
            index = list(graph.node).index(node)
            one, inner = f"{node.output[0]}/one", f"{node.output[0]}/erf"
            graph.initializer.append(numpy_helper.from_array(np.float32(1.0), one))
            graph.node.insert(
                index + 1, helper.make_node("Sub", [one, inner], [node.output[0]], name=f"{node.name}/sub")
            )
            node.op_type, node.output[0] = "Erf", inner


def _name_fused(graph: Any) -> None:
    """Name fused LSTM and GRU nodes after their layer; tf2onnx gives them generated names."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if re.fullmatch(r"(LSTM|GRU|RNN)\w*", node.name):
            near = [makers[name].name for name in node.input if name in makers]
            layers = [name.rpartition("/")[0] for name in near if "/" in name]
            if layers:
                node.name = f"{layers[-1]}/{node.op_type}"


def _rename(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    """Give the graph's inputs and outputs the source's names; other tensors with these names get new ones."""
    wanted = {
        **{value.name: name for value, name in zip(_in_order(graph.input, inputs), inputs, strict=True)},
        **{value.name: name for value, name in zip(graph.output, outputs, strict=True)},
    }
    taken = set(wanted.values())
    mapping = {name: f"{name}__inner" for node in graph.node for name in node.output if name in taken}
    mapping.update({tensor.name: f"{tensor.name}__inner" for tensor in graph.initializer if tensor.name in taken})
    mapping.update(wanted)
    for node in graph.node:
        node.input[:] = [mapping.get(name, name) for name in node.input]
        node.output[:] = [mapping.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = mapping.get(value.name, value.name)
    _separate(graph, set(inputs) & set(outputs))


def _in_order(values: Any, names: list[str]) -> list[Any]:
    """Graph inputs in the signature's order; tf2onnx may reorder them but keeps their names."""
    by_name = {value.name.partition(":")[0]: value for value in values}
    if len(by_name) == len(names) and all(name in by_name for name in names):
        return [by_name[name] for name in names]
    return list(values)


def _separate(graph: Any, both: set[str]) -> None:
    if both:
        names = ", ".join(sorted(both))
        raise ModelFormatError(f"inputs and outputs share the names {names}", advice="Rename the layers.")


def _batched(shape: Any, path: str) -> list[int | None]:
    sizes = list(shape)
    if not sizes or None in sizes[1:]:
        raise ModelFormatError(
            f"{path}: an input has shape {sizes}, expected fixed sizes on every axis but the first",
            advice="Save the model with fixed input sizes.",
        )
    return [None if sizes[0] != 1 else 1, *sizes[1:]]


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + " ".join(lines[:3])[:400]
