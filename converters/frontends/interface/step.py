"""The last step of reading a model: its batch is found, its output sizes are settled, and the batch comes first."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import onnx
from onnx import shape_inference

from converters.frontends.interface.axes import Axis, Dims, is_free
from converters.frontends.interface.batch import Found, find_batch
from converters.frontends.interface.borders import move_batches
from converters.frontends.interface.proposals import text_of
from converters.frontends.interface.protobuf import copy_of, dims_of, dtype_of, inputs_of, names_read, set_dims
from converters.frontends.interface.sizes import FixedInput, Settled, settle_by_proposal
from converters.frontends.interface.undecided import require_runnable_branches
from converters.graph.graph import Graph
from converters.graph.interface import Interface, SourceInput
from edgekit.errors import ModelFormatError
from edgekit.tensors import DType, TensorSpec


def canonical_graph(
    model: onnx.ModelProto, settled: Settled, source: str, dtypes: Mapping[str, str] = MappingProxyType({})
) -> Graph:
    """The canonical graph of `model`, with the interface of its source.

    Args:
        model: A valid model of one operator set, whose free axes besides the batch were settled.
        settled: What was settled of its inputs.
        source: The model's path, for messages.
        dtypes: The source's float types by tensor, where they are not float32.

    Raises:
        ModelFormatError: A free axis turned out not to be a batch, the size of an output cannot be told, or no input
            is read.
    """
    model = copy_of(model)
    found = find_batch(model)
    if found.rejected:
        note = _settle_rejected(model, found, settled, source)
        again = find_batch(model)
        batched = any(axis is not None for axis in again.inputs.values())
        notes = again.notes if batched else found.notes
        found = msgspec.structs.replace(again, notes=(*((note,) if note else ()), *notes))
    if settled.rows and (not found.shapes or all(axis is None for axis in found.inputs.values())):
        raise ModelFormatError(
            f"{source} was exported for {settled.rows} rows, and cannot be run on one: the number is fixed inside, or "
            "rows depend on each other",
            advice="Export it with a batch of 1 or a free batch; or take all its rows as one sample, and give each "
            f"sample of --data {settled.rows} rows.",
        )
    for value in inputs_of(model):  # a free axis that is no batch: nothing but one row is known to work
        batch = found.inputs[value.name]
        set_dims(value, tuple(1 if is_free(axis) and i != batch else axis for i, axis in enumerate(dims_of(value))))
    _settle_outputs(model, found, source)
    read = names_read(model)
    interface = _with_dtypes(_interface(model, found, settled, read), dtypes)
    if not any(one.in_graph for one in interface.inputs):
        raise ModelFormatError(
            f"{source}: no operator reads an input, so the answers never change",
            advice="Export the model again; its inputs were replaced by constants.",
        )
    kept = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    move_batches(model, found.inputs, found.outputs, free=found.free)
    graph = Graph(model)
    require_runnable_branches(graph)
    return graph if interface.plain and not interface.notes and not dtypes else graph.with_interface(interface)


def _settle_rejected(model: onnx.ModelProto, found: Found, settled: Settled, source: str) -> str:
    """Fix free axes that are no batch to the size 1 that the user stated, or as proposed. Returns a note, or nothing.

    Raises:
        ModelFormatError: The user stated no size, and takes no proposal.
    """
    unsettled = {name: axes for name, axes in found.rejected.items() if name not in settled.stated.shapes}
    if unsettled:
        why = "; the answer to one entry of this axis depends on the others, so it is no batch"
        return settle_by_proposal(model, unsettled, source, settled.stated, why)
    for value in inputs_of(model):
        if value.name in found.rejected:
            set_dims(value, tuple(1 if is_free(axis) else axis for axis in dims_of(value)))
    return ""


def _settle_outputs(model: onnx.ModelProto, found: Found, source: str) -> None:
    """Give each output the sizes that a run showed, or that shape inference finds; the batch stays free or 1."""
    inferred = {value.name: value for value in _inferred(model, found).graph.output} if not found.shapes else {}
    for value in model.graph.output:
        axis = found.outputs.get(value.name)
        known = value.name in found.shapes
        dims: Dims = found.shapes[value.name] if known else dims_of(inferred.get(value.name, value))
        unknown = [index for index, size in enumerate(dims) if is_free(size) and index != axis]
        if unknown:
            raise ModelFormatError(
                f"{source}: the size of output {value.name} along axis {unknown[0]} cannot be told, because the model "
                "does not run on trial inputs",
                advice="Fix inputs whose value decides what the model does, as in --fix sr=16000; "
                "or cut the model before this output with --cut.",
            )
        if 0 in dims:
            raise ModelFormatError(
                f"{source}: output {value.name} has the shape [{text_of(dims)}], so it holds no numbers",
                advice="Fix the input that gives its size with --fix NAME=VALUE, or cut the model with --cut.",
            )
        set_dims(value, dims)


def _inferred(model: onnx.ModelProto, found: Found) -> onnx.ModelProto:
    """The model with a batch of 1 and inferred shapes."""
    one = copy_of(model)
    for value in inputs_of(one):
        set_dims(value, tuple(1 if is_free(axis) else axis for axis in dims_of(value)))
    for value in one.graph.output:
        axis = found.outputs.get(value.name)
        if value.type.tensor_type.HasField("shape"):
            set_dims(value, tuple(1 if index == axis else size for index, size in enumerate(dims_of(value))))
    return shape_inference.infer_shapes(one, data_prop=True)


def _interface(model: onnx.ModelProto, found: Found, settled: Settled, read: set[str]) -> Interface:
    """The source's interface. `model` lacks only the fixed inputs; `read` names what its nodes read."""
    symbols = {dims_of(v)[axis] for v in inputs_of(model) if (axis := found.inputs.get(v.name)) is not None}
    inputs = [
        SourceInput(_spec(value, dims_of(value), found.inputs[value.name]), unread=value.name not in read)
        for value in inputs_of(model)
    ]
    for fixed in settled.fixed:
        inputs.insert(fixed.index, SourceInput(_fixed_spec(fixed, symbols), fixed.value))
    outputs = tuple(_spec(value, dims_of(value), found.outputs[value.name]) for value in model.graph.output)
    return Interface(tuple(inputs), outputs, notes=(*settled.notes, *found.notes))


def _spec(value: Any, dims: Dims, batch: int | None) -> TensorSpec:
    sizes = tuple(None if index == batch else size for index, size in enumerate(dims))
    return TensorSpec(value.name, dtype_of(value), tuple(s if isinstance(s, int) else None for s in sizes))


def _with_dtypes(interface: Interface, dtypes: Mapping[str, str]) -> Interface:
    """The interface with the source's own float types; clients send bfloat16, which arrays do not have, as float32."""
    known = {name: DType(dtype) for name, dtype in dtypes.items() if dtype in set(DType)}

    def changed(spec: TensorSpec) -> TensorSpec:
        return TensorSpec(spec.name, known.get(spec.name, spec.dtype), spec.shape)

    inputs = tuple(msgspec.structs.replace(one, spec=changed(one.spec)) for one in interface.inputs)
    return msgspec.structs.replace(interface, inputs=inputs, outputs=tuple(map(changed, interface.outputs)))


def _fixed_spec(fixed: FixedInput, symbols: set[Axis]) -> TensorSpec:
    """The logical tensor of a fixed input: an axis with the batch's symbol, or a first free one, is the batch."""
    dims = fixed.dims
    free = [index for index, axis in enumerate(dims) if is_free(axis)]
    batch = next(
        (index for index in free if dims[index] is not None and dims[index] in symbols), next(iter(free), None)
    )
    shape = tuple(None if index == batch else size if isinstance(size, int) else 1 for index, size in enumerate(dims))
    return TensorSpec(fixed.name, fixed.dtype, shape)
