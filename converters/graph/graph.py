"""The canonical float model: an ONNX graph with facts such as shapes, constants and multiply-adds."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, shape_inference

from converters.cache import array_bytes
from converters.graph.bodies import bodies_of, body_macs
from converters.graph.constants import Constants
from converters.graph.interface import Interface, SourceInput
from converters.graph.opaque import Opaque, opaque_of, run_opaque
from edgekit.errors import ConversionError, ModelFormatError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array, DType, TensorSpec

BATCH = "batch"
CHUNK_ROWS, CHUNK_BYTES = 64, 64 << 20  # of one run: rows, and bytes of tensors that live at the same time
SHAPE_VALUES = 1024  # constants with more elements are no shapes
INTERFACE = "edgekit.interface"  # key of the model's metadata with the source's interface
_INTERFACES = msgspec.json.Decoder(Interface)


class Graph:
    """One ONNX graph. It is a value: nobody changes a model that a Graph holds.

    Args:
        model: A checked model with one opset import of the standard domain, and the batch first in every input and
            output.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def __reduce__(self) -> tuple[Any, ...]:
        return unpacked, (packed(self),)  # without the cached properties

    @property
    def nodes(self) -> list[Any]:
        """The nodes in order of execution."""
        return list(self.model.graph.node)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return next(int(entry.version) for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in order; a free batch is None."""
        constants = {tensor.name for tensor in self.model.graph.initializer}
        return tuple(_spec(value) for value in self.model.graph.input if value.name not in constants)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in order; a free batch is None."""
        return tuple(_spec(value) for value in self.model.graph.output)

    @property
    def has_interface(self) -> bool:
        """True if the graph stores the interface of its source, because it is not the graph's own."""
        return any(entry.key == INTERFACE for entry in self.model.metadata_props)

    @cached_property
    def interface(self) -> Interface:
        """The source's interface. Where none was stored, it is the graph's own, always with a free batch."""
        stored = next((entry.value for entry in self.model.metadata_props if entry.key == INTERFACE), None)
        if stored is not None:
            return _INTERFACES.decode(stored)
        return Interface(tuple(SourceInput(_free(spec)) for spec in self.inputs), tuple(map(_free, self.outputs)))

    def with_interface(self, interface: Interface) -> Graph:
        """The same graph of a source with `interface`; its canonical form is this graph."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        kept = [entry for entry in model.metadata_props if entry.key != INTERFACE]
        kept.append(onnx.StringStringEntryProto(key=INTERFACE, value=msgspec.json.encode(interface).decode()))
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        return Graph(model)

    def with_notes(self, notes: tuple[str, ...]) -> Graph:
        """The same graph with notes before its own; this graph where there are none."""
        found = self.interface
        return self.with_interface(msgspec.structs.replace(found, notes=(*notes, *found.notes))) if notes else self

    @property
    def logical_inputs(self) -> tuple[TensorSpec, ...]:
        """The source's inputs as clients see them, in the source's layout, fixed and unread ones too."""
        return tuple(one.spec for one in self.interface.inputs)

    @property
    def logical_outputs(self) -> tuple[TensorSpec, ...]:
        """The source's outputs as clients see them, in the source's layout."""
        return self.interface.outputs

    @property
    def sample_inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs as data files have them: a free sample axis first."""
        return tuple(_free(spec) for spec in self.inputs)

    @property
    def sample_outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs for a number of samples: a free sample axis first."""
        return tuple(_free(spec) for spec in self.outputs)

    @property
    def free_batch(self) -> bool:
        """True where the graph takes any number of rows at once."""
        return all(spec.shape[0] is None for spec in self.inputs)

    @cached_property
    def constants(self) -> Constants:
        """Constant values by name: initializers and Constant nodes."""
        return Constants(self.model.graph)

    @cached_property
    def opaque(self) -> Opaque | None:
        """Facts of a model without ONNX form, whose one node holds a .tflite; None for all others."""
        return opaque_of(self.model)

    @property
    def operators(self) -> dict[str, int]:
        """How often each operator occurs, the most frequent first."""
        if self.opaque is not None:
            return self.opaque.operators
        return dict(Counter(node.op_type for node in self.nodes if node.op_type != "Constant").most_common())

    @property
    def parameters(self) -> int:
        """Number of trained values: elements of all floating-point constants."""
        if self.opaque is not None:
            return self.opaque.parameters
        return sum(value.size for value in self.constants.values() if value.dtype.kind == "f")

    def compact(self) -> Graph:
        """The same graph without the memory of what was removed from its model: a protobuf message never frees any."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return Graph(model)

    def to_bytes(self) -> bytes:
        """The serialized model with its weights."""
        data: bytes = self.model.SerializeToString()
        return data

    def with_batch(self, batch: int | None) -> Graph:
        """The same graph with the batch fixed to `batch` (None: free batch) and without stored shapes."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.value_info[:]
        for value in (*model.graph.input, *model.graph.output):
            axis = value.type.tensor_type.shape.dim[0]
            axis.Clear()
            if batch is None:
                axis.dim_param = BATCH
            else:
                axis.dim_value = batch
        return Graph(model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shape of every tensor that shape inference knows; None for an unknown size."""
        inferred = shape_inference.infer_shapes(_without_weights(self.model), data_prop=True)
        values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        shapes = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
        return {**shapes, **self.constants.shapes}

    @cached_property
    def macs(self) -> dict[str, int]:
        """Multiply-adds of one row, by the name of the node's first output; nodes without multiply-adds are missing.

        Loops count with their bodies (see `body_macs`).
        """
        if self.opaque is not None:
            return {self.outputs[0].name: self.opaque.macs}
        one = self.with_batch(1)
        counts = {node.output[0]: _macs(node, one.shapes) for node in one.nodes}
        if any(bodies_of(node) for node in one.nodes):
            inferred = shape_inference.infer_shapes(_without_weights(one.model), data_prop=True).graph.node
            repeated = [node for node in inferred if bodies_of(node)]
            counts.update({node.output[0]: body_macs(node, one.shapes, one.constants, _macs) for node in repeated})
        return {name: count for name, count in counts.items() if count}

    def maker(self, tensor: str) -> Any | None:
        """The node that computes `tensor`; None for inputs and initializers."""
        return next((node for node in self.model.graph.node if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[Any]:
        """The nodes that read `tensor`."""
        return [node for node in self.model.graph.node if tensor in node.input]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run `inputs` (N, ...) in ONNX Runtime, in chunks that bound memory; a model without ONNX form in LiteRT.

        Raises:
            DataError: an input does not fit its spec.
            RuntimeLoadError: the runtime cannot load or run the graph.
            ConversionError: the size of an output depends on the values of the inputs.
        """
        if self.opaque is not None:
            names = [spec.name for spec in self.inputs], [spec.name for spec in self.outputs]
            return joined([whole(part, 1) for part in run_opaque(self.opaque, names, self.chunks(inputs))])
        runtime = OnnxRuntime(self.to_bytes(), threads=1)
        try:
            chunks = self.chunks(inputs)
            parts = [whole(runtime.run(chunk), len(next(iter(chunk.values())))) for chunk in chunks]
        finally:
            runtime.close()
        return joined(parts)

    @cached_property
    def live_bytes(self) -> int:
        """The most bytes that a row's tensors take at one place of the graph; unknown sizes count as 1."""
        last: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            for name in reads(node):
                last[name] = place
        sizes = self._bytes_of_row
        live = {spec.name: sizes.get(spec.name, 0) for spec in self.inputs}
        most = sum(live.values())
        for place, node in enumerate(self.nodes):
            live.update({name: sizes.get(name, 0) for name in node.output})
            most = max(most, sum(live.values()))
            live = {name: size for name, size in live.items() if last.get(name, -1) > place}
        return most

    @property
    def _bytes_of_row(self) -> dict[str, int]:
        """The bytes of each tensor but the constants, for one row."""
        known = {name: shape for name, shape in self.shapes.items() if name not in self.constants}
        return {name: 4 * math.prod(size or 1 for size in shape) for name, shape in known.items()}

    def rows_at_once(self, most: int = CHUNK_ROWS, kept: Iterable[str] = (), most_bytes: int = 0) -> int:
        """How many rows to run at once, so that their tensors fit into memory; at least one.

        Args:
            most: The largest number.
            kept: Tensors that the caller gets beside the outputs.
            most_bytes: For tensors that live at the same time; 0 for `CHUNK_BYTES`.
        """
        if not self.free_batch or self.opaque is not None:
            return 1
        sizes = self._bytes_of_row
        row = max(1, self.live_bytes, sum(sizes.get(name, 0) for name in kept))
        return max(1, min(most, (most_bytes or CHUNK_BYTES) // row))

    def chunks(self, inputs: Mapping[str, Array], most_bytes: int = 0) -> Iterator[dict[str, Array]]:
        """`inputs` (N, ...) in chunks as `rows_at_once` says; single rows where the batch is fixed."""
        rows, count = self.rows_at_once(most_bytes=most_bytes), len(next(iter(inputs.values())))
        for start in range(0, count, rows):
            yield {name: value[start : start + rows] for name, value in inputs.items()}


def joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Answers (N, ...) by output, from those of several calls.

    Raises:
        ConversionError: the calls gave outputs of different sizes.
    """
    for name in parts[0]:
        sizes = sorted({part[name].shape[1:] for part in parts})
        if len(sizes) > 1:
            raise varying_size(name, *sizes[:2])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def whole(answers: Mapping[str, Array], rows: int) -> Mapping[str, Array]:
    """The answers to `rows` samples, as they are.

    Raises:
        ConversionError: an output has another number of rows, so its size depends on the values of the inputs.
    """
    for name, value in answers.items():
        if len(value) != rows:
            raise varying_size(name, (rows, *value.shape[1:]), value.shape)
    return answers


def varying_size(output: str, *sizes: tuple[int, ...]) -> ConversionError:
    """The error for an output that has other `sizes`, for other samples."""
    found = [f"{list(size)}{' (no numbers)' if 0 in size else ''}" for size in sizes]
    return ConversionError(
        f"the size of output {output} depends on the values of the inputs: samples gave " + " and ".join(found),
        advice="Fix the input that states the size with --fix NAME=VALUE, or cut the model with --cut.",
    )


def without_interface(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the stored interface of its source, for artifacts, whose bindings have it."""
    if not any(entry.key == INTERFACE for entry in model.metadata_props):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    kept = [entry for entry in made.metadata_props if entry.key != INTERFACE]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)
    return made


def packed(graph: Graph) -> Array:
    """The serialized model (N,) uint8, as an array that joblib maps into other processes."""
    return np.frombuffer(graph.to_bytes(), np.uint8)


def unpacked(data: Array) -> Graph:
    """The graph of `data`, which `packed` made."""
    return Graph(onnx.load_model_from_string(data.tobytes()))


def digest_of(graph: Graph) -> str:
    """Digest of what `graph` computes and of its layers' names; names of tensors and constants do not count."""
    constants = graph.constants
    identities: dict[str, str] = {}
    digest = hashlib.sha256(repr((graph.inputs, graph.outputs, graph.opset)).encode())
    if graph.has_interface:  # artifacts hold its bindings
        digest.update(repr(msgspec.structs.replace(graph.interface, notes=())).encode())
    for spec in graph.inputs:
        identities[spec.name] = spec.name
    for node in graph.nodes:
        for name in node.input:
            if name in constants:
                identities[name] = hashlib.sha256(array_bytes(constants[name])).hexdigest()
        description = (node.op_type, label(node), [identities.get(name, name) for name in node.input], len(node.output))
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        digest.update(repr((description, attributes)).encode())
        identities.update({name: f"{label(node)}:{index}" for index, name in enumerate(node.output)})
    return digest.hexdigest()


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node as Python values, with bytes as text."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def label(node: Any) -> str:
    """The label of a node: its name, or its first output where it has no name."""
    return str(node.name or node.output[0])


def reads(node: Any) -> set[str]:
    """Names of the tensors that `node` reads, also inside its subgraphs."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else ():
            for inner in body.node:
                names |= reads(inner)
    return names


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for shape inference, which reads small constants only."""
    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    made.graph.MergeFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    made.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        small = math.prod(tensor.dims) <= SHAPE_VALUES
        kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        made.graph.initializer.append(tensor if small else kept)
    return made


def _spec(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise ModelFormatError(f"{value.name}: expected a tensor of known shape")
    dtype = DType.of(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return TensorSpec(value.name, dtype, _shape(value))


def _shape(value: Any) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims)


def _free(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, (None, *spec.shape[1:]))


def _macs(node: Any, shapes: Mapping[str, tuple[int | None, ...]]) -> int:
    out = shapes.get(node.output[0], ())
    weights = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
    if None in out or None in weights:
        return 0
    size = math.prod(n for n in out if n is not None)
    if node.op_type == "Conv":
        return size * math.prod(n for n in weights[1:] if n is not None)
    if node.op_type == "ConvTranspose":
        read = shapes.get(node.input[0], ())
        return math.prod(n or 1 for n in read) * math.prod(n or 1 for n in weights[1:])
    if node.op_type in ("LSTM", "GRU", "RNN"):
        steps = shapes.get(node.input[0], ())[:1]
        recurrent = shapes.get(node.input[2], ())
        return math.prod(n or 1 for n in steps) * (
            math.prod(n or 1 for n in weights) + math.prod(n or 1 for n in recurrent)
        )
    if node.op_type in ("Gemm", "MatMul"):
        read = shapes.get(node.input[0], ())
        inner = read[0] if node.op_type == "Gemm" and attributes(node).get("transA") else (read[-1] if read else 0)
        return size * (inner or 0)
    return 0
