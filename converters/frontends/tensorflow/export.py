"""A loaded TensorFlow model as ONNX, by tf2onnx. Only the TensorFlow process (framework_process.py) imports it."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf2onnx
from onnx import helper, numpy_helper
from tf2onnx import tf_loader

from converters.foreign_text import SHOWN, plain_text
from converters.frontends.refusals import changes_state
from converters.frontends.tensorflow.loaded import Loaded
from converters.frontends.tensorflow.numbering import renumber
from edgekit.errors import ConversionError, UnsupportedOpError

OPSET = 17
BATCH = "batch"
_FAILED = re.compile(r"Failed to convert node '([^']+)'")
_CHANGES = re.compile(r"Assign\w*VariableOp|AssignVariableXlaConcatND|Resource(Strided|Scatter)\w+")
_OPERATOR = re.compile(r"OP=(\w+)")


def exported(loaded: Loaded, path: str) -> bytes:
    """The model as serialized ONNX. Its first axis is named ``batch`` where it is free; other free axes have no name.

    Raises:
        ModelFormatError: The model changes its own variables.
        UnsupportedOpError: tf2onnx failed at an operator.
        ConversionError: tf2onnx failed otherwise.
    """
    function = tf.function(lambda *tensors: [tf.identity(t) for t in loaded.function(*tensors)], autograph=False)
    with _without_xla():
        concrete = function.get_concrete_function(*loaded.inputs)
    _refuse_changes(concrete.graph, loaded, path)
    captured = {inner.name: outer for outer, inner in concrete.graph.captures if outer.dtype != tf.resource}
    model = _converted(function, loaded.inputs)
    _bind(model.graph, captured)
    _replace_erfc(model.graph)
    _name_fused(model.graph)
    _rename(model.graph, [spec.name for spec in loaded.inputs], loaded.outputs)
    _set_sizes(model.graph, loaded.inputs, [value.shape for value in concrete.outputs])
    renumber(model.graph)
    data: bytes = model.SerializeToString()
    return data


@contextlib.contextmanager
def _without_xla() -> Iterator[None]:
    """Trace functions that Keras compiles by XLA as part of the model: grouped convolutions, which have no CPU kernel.

    Such a function stays a call of its own in the graph, and tf2onnx knows no calls.
    """
    original = tf.function

    def function(*arguments: Any, **options: Any) -> Any:
        if not options.get("jit_compile"):
            return original(*arguments, **options)
        return arguments[0] if arguments else lambda inner: inner

    tf.function = function
    try:
        yield
    finally:
        tf.function = original


def _converted(function: Any, inputs: list[Any]) -> Any:
    watched = _Failures()
    logger = logging.getLogger("tf2onnx.tfonnx")
    logger.addHandler(watched)
    try:
        with _Copies():
            return tf2onnx.convert.from_function(function, input_signature=inputs, opset=OPSET)[0]
    except Exception as error:  # tf2onnx raises errors of any type; its log names the operator
        if watched.layer:
            raise UnsupportedOpError(
                watched.operator,
                watched.layer,
                backend="targets that need ONNX",
                advice="Replace the layer, or save the model from the next layer on.",
            ) from error
        raise ConversionError(
            f"the model cannot be exported to ONNX: tf2onnx fails with {type(error).__name__} ({SHOWN})",
            advice="Export it to ONNX yourself, and convert the .onnx file.",
            foreign_text=plain_text(error),
        ) from error
    finally:
        logger.removeHandler(watched)


class _Copies(logging.Handler):
    """Frees the copies of the graph that tf2onnx makes, once they have been read.

    They are its frozen function and one graph for each of its optimizers: reference cycles, which Python
    would look for rarely beside TensorFlow's many objects, so over 40 times the memory of the weights would be in use.
    What is frozen is left out of the search, so it takes little time.
    """

    def __enter__(self) -> None:
        self._freeze = tf_loader.convert_variables_to_constants_v2
        tf_loader.convert_variables_to_constants_v2 = self._frozen
        self._logger = logging.getLogger("tf2onnx.optimizer")
        self._level = self._logger.level
        self._logger.addHandler(self)
        self._logger.setLevel(logging.DEBUG)  # each optimizer that begins is logged
        gc.freeze()

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        self._logger.setLevel(self._level)
        self._logger.removeHandler(self)
        tf_loader.convert_variables_to_constants_v2 = self._freeze

    def _frozen(self, function: Any, **options: Any) -> _FrozenFunction:
        """The frozen function as tf2onnx reads it: it would hold the function until its own optimizer has ended."""
        return _FrozenFunction(self._freeze(function, **options))

    def emit(self, record: logging.LogRecord) -> None:
        """Free the copies before."""
        gc.collect()


class _FrozenFunction:
    """A frozen function that is freed when its graph is read, which is once."""

    def __init__(self, function: Any) -> None:
        self._function = function

    @property
    def graph(self) -> _FrozenFunction:
        """The place of the graph: tf2onnx only asks it for the message."""
        return self

    def as_graph_def(self, **options: Any) -> Any:
        """The graph as a message; the function is freed."""
        definition = self._function.graph.as_graph_def(**options)
        del self._function
        gc.collect()
        return definition


class _Failures(logging.Handler):
    """Reads the first operator that tf2onnx could not convert from its log."""

    layer = operator = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Read one entry of the log."""
        text = record.getMessage()
        layer, operator = _FAILED.search(text), _OPERATOR.search(text)
        if layer and not self.layer:
            self.layer = layer[1]
        if operator and not self.operator:
            self.operator = operator[1]


def _refuse_changes(graph: Any, loaded: Loaded, path: str) -> None:
    """Refuse a model whose answers depend on variables that it changes: tf2onnx drops such operations with a warning.

    Many models change variables that no answer depends on, for example the seeds of unused dropout.
    """
    changed = sorted({name for kind, name in _operations(graph) if _CHANGES.match(kind)})
    if changed and not _answers_repeat(loaded):
        raise changes_state(path, ", ".join(changed[:4]))


def _answers_repeat(loaded: Loaded) -> bool:
    """True where the model gives the same answers to the same inputs three times."""
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in loaded.inputs:
        shape = [size or 1 for size in spec.shape]
        inputs[spec.name] = rng.normal(0, 1, shape) if spec.dtype.is_floating else np.ones(shape)
    try:
        first, *others = (loaded.answers(inputs) for _ in range(3))
    except (ValueError, TypeError, tf.errors.OpError):  # it does not take these inputs, so nothing is known
        return False
    return all(np.array_equal(first[name], other[name], equal_nan=True) for other in others for name in first)


def _operations(graph: Any) -> Iterator[tuple[str, str]]:
    """The type and the name of every operation in the graph and in its functions."""
    parts = {field.name: value for field, value in graph.as_graph_def().ListFields()}
    bodies = [function.node_def for function in parts["library"].function] if "library" in parts else []
    for nodes in (parts.get("node", ()), *bodies):
        for node in nodes:
            yield node.op, node.name


def _set_sizes(graph: Any, inputs: list[Any], outputs: list[Any]) -> None:
    """Give inputs and outputs the sizes that TensorFlow knows; tf2onnx loses some, and names every free axis anew."""
    by_name = {value.name: value for value in graph.input}
    pairs = [(by_name[spec.name], spec.shape) for spec in inputs if spec.name in by_name]
    pairs += [(value, shape) for value, shape in zip(graph.output, outputs, strict=True) if shape.rank is not None]
    free = any(spec.shape.rank and spec.shape[0] is None for spec in inputs)
    for value, shape in pairs:
        kind = value.type.tensor_type
        del kind.shape.dim[:]
        kind.shape.SetInParent()
        for axis, size in enumerate(shape):
            dim = kind.shape.dim.add()
            if size is not None:
                dim.dim_value = size
            elif axis == 0 and free:
                dim.dim_param = BATCH
    del graph.value_info[:]


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


def _in_order(values: Any, names: list[str]) -> list[Any]:
    """Graph inputs in the signature's order; tf2onnx may reorder them but keeps their names."""
    by_name = {value.name.partition(":")[0]: value for value in values}
    if len(by_name) == len(names) and all(name in by_name for name in names):
        return [by_name[name] for name in names]
    return list(values)
