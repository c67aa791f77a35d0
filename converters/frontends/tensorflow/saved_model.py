"""Loads SavedModels as functions. Only the TensorFlow process (framework_process.py) imports this module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import struct_pb2
from tensorflow.python.saved_model import loader_impl

from converters.foreign_text import SHOWN, plain_text
from converters.frontends.tensorflow.legacy import frozen_saved_model
from converters.frontends.tensorflow.loaded import Loaded, input_spec, unique
from edgekit.errors import ModelFormatError, SettingsError

DEFAULT = "serving_default"
_PART = re.compile(r"_\d+$")
UNTYPED = {
    struct_pb2.TypeSpecProto.RAGGED_TENSOR_SPEC: "ragged",
    struct_pb2.TypeSpecProto.SPARSE_TENSOR_SPEC: "sparse",
}


def load_saved_model(path: str, signature: str) -> Loaded:
    """Load one signature of the SavedModel at `path`; an empty `signature` is ``serving_default``, or the only one.

    A model without signatures, as TensorFlow Hub has them, is called directly.

    Raises:
        SettingsError: There is no such signature, or several and none was named.
        ModelFormatError: TensorFlow cannot load the folder, or the model takes other things than tensors.
    """
    try:
        model = tf.saved_model.load(path)
    except (ValueError, OSError, AttributeError, IndexError, KeyError, tf.errors.OpError) as error:
        return _frozen(path, signature, error)
    if not model.signatures and not signature:
        return _called(model, path)
    chosen = model.signatures[_chosen(dict(model.signatures), signature, path)]
    specs = chosen.structured_input_signature[1]
    _refuse_other_tensors(specs, path)
    inputs = [input_spec(name, spec.shape, spec.dtype, path) for name, spec in specs.items()]
    names = list(chosen.structured_outputs)

    def call(*tensors: Any) -> list[Any]:
        answers = chosen(**dict(zip(specs, tensors, strict=True)))
        return [answers[name] for name in names]

    call.keep = model  # type: ignore[attr-defined]  # keeps the variables alive, which TensorFlow drops with the loaded object
    return Loaded(call, inputs, names)


def _chosen(signatures: Mapping[str, Any], wanted: str, path: str) -> str:
    """The name of the signature to convert. Raises SettingsError as `load_saved_model`."""
    if wanted in signatures:
        return wanted
    if not wanted and DEFAULT in signatures:
        return DEFAULT
    if not wanted and len(signatures) == 1:
        return next(iter(signatures))
    listed = "; ".join(f"{name} ({_described(signature)})" for name, signature in sorted(signatures.items()))
    found = f"{path} has the signatures {listed}" if listed else f"{path} has no signatures"
    expected = f"there is none named {wanted!r}" if wanted else f"none of them is {DEFAULT}"
    first = next(iter(sorted(signatures)), "")
    advice = f"Choose one with --signature, for example --signature {first}." if first else "Leave out --signature."
    raise SettingsError(f"{found}; {expected}", advice=advice)


def _described(signature: Any) -> str:
    specs = signature.structured_input_signature[1]
    inputs = [f"{name} {spec.dtype.name}{_sizes(spec.shape)}" for name, spec in specs.items()]
    return f"{', '.join(inputs) or 'no inputs'} to {', '.join(signature.structured_outputs) or 'nothing'}"


def _sizes(shape: Any) -> str:
    if shape.rank is None:
        return "[any shape]"
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _refuse_other_tensors(specs: Mapping[str, Any], path: str) -> None:
    """Refuse a signature of ragged or sparse tensors: it shows their parts, `x` and the integers `x_1` ..."""
    parts = [
        name for name, spec in specs.items() if _PART.sub("", name) in specs.keys() - {name} and spec.dtype == tf.int64
    ]
    found = _other_tensors(path) if parts else ""
    if found:
        raise ModelFormatError(
            f"{path}: {_PART.sub('', parts[0])} is a {found} tensor, and runtimes on devices take dense ones",
            advice="Export a function that takes dense tensors, padded to one size, with a mask if needed.",
        )


def _other_tensors(path: str) -> str:
    """``ragged`` or ``sparse`` if a function of the model takes such tensors; otherwise empty."""
    graph = loader_impl.parse_saved_model(path).meta_graphs[0].object_graph_def
    for function in graph.concrete_functions.values():
        pending = [function.canonicalized_input_signature]
        while pending:
            value = pending.pop()
            kind = value.WhichOneof("kind")
            if kind == "type_spec_value" and value.type_spec_value.type_spec_class in UNTYPED:
                return UNTYPED[value.type_spec_value.type_spec_class]
            if kind in ("list_value", "tuple_value"):
                pending.extend(getattr(value, kind).values)
            elif kind == "dict_value":
                pending.extend(value.dict_value.fields.values())
    return ""


def _called(model: Any, path: str) -> Loaded:
    """The model itself as a function of its tensors, outside training."""
    found = []
    for function in getattr(getattr(model, "__call__", None), "concrete_functions", ()):  # noqa: B004 - a loaded object
        leaves = tf.nest.flatten(function.structured_input_signature)
        specs = [leaf for leaf in leaves if isinstance(leaf, tf.TensorSpec)]
        if specs and not any(leaf is True for leaf in leaves):
            found.append((function.structured_input_signature, specs, function.structured_outputs))
    if not found:
        raise ModelFormatError(
            f"{path} has no signatures, and the model cannot be called with tensors",
            advice='Export it with model.export("folder") of Keras, or with tf.saved_model.save(..., signatures=...).',
        )
    structure, specs, outputs = found[0]
    names = unique([spec.name or f"input_{index}" for index, spec in enumerate(specs)])
    inputs = [input_spec(name, spec.shape, spec.dtype, path) for name, spec in zip(names, specs, strict=True)]
    labels = list(outputs) if isinstance(outputs, Mapping) else None
    count = len(tf.nest.flatten(outputs))

    def call(*tensors: Any) -> list[Any]:
        left = iter(tensors)
        leaves = [next(left) if isinstance(leaf, tf.TensorSpec) else leaf for leaf in tf.nest.flatten(structure)]
        arguments, options = tf.nest.pack_sequence_as(structure, leaves)
        return list(tf.nest.flatten(model(*arguments, **options)))

    plain = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    return Loaded(call, inputs, sorted(labels) if labels is not None and len(labels) == count else plain)


def _frozen(path: str, signature: str, why: Exception) -> Loaded:
    """Load the folder with the loader of TensorFlow 1 after the usual loader failed; prints a line for the log."""
    if not (Path(path) / "variables" / "variables.index").is_file() and "TensorSliceReader" in str(why):
        raise ModelFormatError(
            f"{path} lacks the files of its weights, variables/variables.index and variables/variables.data-*",
            advice="Copy the whole folder of the SavedModel, with its folder variables.",
        ) from why
    try:
        call, specs, names = frozen_saved_model(path, signature or DEFAULT)
    except (ValueError, LookupError, OSError, RuntimeError, tf.errors.OpError) as error:
        raise ModelFormatError(
            f"{path} cannot be loaded by TensorFlow {tf.__version__}, nor by the loader of TensorFlow 1: they fail "
            f"with {type(why).__name__} and {type(error).__name__} ({SHOWN})",
            advice="Load it with the TensorFlow that wrote it, and save it as .keras.",
            foreign_text=f"{plain_text(why)}\n{plain_text(error)}",
        ) from why
    print(f"{path} was loaded by TensorFlow 1's loader, since the usual one failed with {type(why).__name__}")
    inputs = [input_spec(name, spec.shape, spec.dtype, path) for name, spec in specs.items()]
    return Loaded(call, inputs, names)
