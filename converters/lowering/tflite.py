"""Convert a canonical graph to a float .tflite, through a SavedModel with one signature and LiteRT's converter.

It runs in the framework process. The converter gets a SavedModel, because its output for concrete functions has no
signature, and the quantizer and the runtime need one.
"""

from __future__ import annotations

import gc
import re
from typing import Any

import onnx
import tensorflow as tf

from converters.foreign_text import failure
from converters.graph.graph import Graph
from converters.lowering import Lowered
from converters.lowering.advice import OTHER_RUNTIME
from converters.lowering.execute import execute
from converters.lowering.values import Value, channels_last, identity
from converters.lowering.weights import Weights
from converters.machine import return_memory, scratch_folder
from edgekit.errors import ConversionError

SIGNATURE = "serving_default"
CHANNEL_FIRST = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize",
                 "BatchNormalization", "InstanceNormalization", "GroupNormalization", "DepthToSpace", "SpaceToDepth",
                 "LRN")  # fmt: skip


def lower(model: bytes | str, *, loops: bool = False) -> Lowered:
    """Lower a canonical graph; with `loops`, recurrent layers stay loops instead of being unrolled.

    Args:
        model: The serialized graph, or the path of its file.
        loops: Keep loops.

    Raises:
        UnsupportedOpError: An operator, or a way of using it, has no TensorFlow form.
        ConversionError: The converter failed, or its output has no signature.
    """
    with scratch_folder(prefix="edgekit-lower-") as folder:
        inputs, outputs = _save(model, folder, loops=loops)
        gc.collect()  # the graph and its variables: the converter needs several times the memory of the weights
        return_memory()
        data = convert_saved_model(folder)
    return Lowered(data, [_permute(order) for order in inputs], [_permute(order) for order in outputs])


def _save(model: bytes | str, folder: str, *, loops: bool) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Write the graph to `folder` as a SavedModel; the axis orders of its inputs and outputs."""
    stored = onnx.load(model) if isinstance(model, str) else onnx.load_model_from_string(model)
    graph = Graph(stored).with_batch(1)
    del stored
    orders = [_input_order(graph, spec.name, len(spec.shape)) for spec in graph.inputs]
    results: list[tuple[int, ...]] = []
    weights = Weights()

    def call(*tensors: Any) -> dict[str, Any]:
        values = {s.name: Value(t, o) for s, t, o in zip(graph.inputs, tensors, orders, strict=True)}
        answers = [_batch_first(answer) for answer in execute(graph, values, loops=loops, weights=weights)]
        results[:] = [answer.order for answer in answers]
        return {f"output_{i}": tf.identity(answer.tensor) for i, answer in enumerate(answers)}

    specs = [
        tf.TensorSpec(_physical(spec.shape, order), tf.as_dtype(spec.dtype.value), name=f"input_{i}")
        for i, (spec, order) in enumerate(zip(graph.inputs, orders, strict=True))
    ]
    call(*(tf.zeros(spec.shape, spec.dtype) for spec in specs))  # makes the variables
    module = tf.Module()
    module.weights = list(weights.variables.values())
    module.call = tf.function(call, input_signature=specs, autograph=False)
    tf.saved_model.save(module, folder, signatures={SIGNATURE: module.call})
    return orders, results


def _batch_first(value: Value) -> Value:
    """Make the batch the first axis of the artifact; it has size 1, so this moves no element."""
    if value.order[0] == 0:
        return value
    physical = sorted(range(1, value.rank), key=lambda axis: value.order[axis])
    order = (0, *(1 + physical.index(axis) for axis in range(1, value.rank)))
    return Value(value.in_order(order), order)


def _input_order(graph: Graph, name: str, rank: int) -> tuple[int, ...]:
    """Channel-first images and signals become channel-last inputs, so that the artifact needs no transpose."""
    readers = graph.consumers(name)
    image = rank in (3, 4) and any(node.op_type in CHANNEL_FIRST for node in readers)
    return channels_last(rank) if image else identity(rank)


def _physical(shape: tuple[int | None, ...], order: tuple[int, ...]) -> list[int | None]:
    sizes: list[int | None] = [None] * len(shape)
    for logical, physical in enumerate(order):
        sizes[physical] = shape[logical]
    return sizes


def _permute(order: tuple[int, ...]) -> tuple[int, ...]:
    """The transposition of a logical tensor into `order`; empty if none is needed."""
    inverse = [0] * len(order)
    for logical, physical in enumerate(order):
        inverse[physical] = logical
    return () if tuple(inverse) == identity(len(order)) else tuple(inverse)


def convert_saved_model(folder: str) -> bytes:
    """The SIGNATURE of a SavedModel as a float .tflite of built-in operators.

    Raises:
        ConversionError: The converter failed, or its output has no such signature.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
    try:
        data: bytes = converter.convert()
    except Exception as error:  # the converter raises bare Exceptions; the error names it and the conversion stops
        missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", str(error))))
        if missing:
            raise ConversionError(
                f"LiteRT has no operators for {', '.join(missing)} of TensorFlow in the types that the model has",
                advice=OTHER_RUNTIME,
            ) from error
        raise failure("TensorFlow's converter", "writing the LiteRT file", error) from error
    signatures = tf.lite.Interpreter(model_content=data).get_signature_list()
    if list(signatures) != [SIGNATURE]:
        raise ConversionError(f"the converted model has the signatures {list(signatures)}, expected {SIGNATURE!r}")
    return data
