"""Reads and writes the inputs and outputs of an ONNX model: their axes, and the names that its nodes read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import helper

from converters.frontends.interface.axes import Axis, Dims
from edgekit.errors import ModelFormatError
from edgekit.tensors import DType


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def inputs_of(model: onnx.ModelProto) -> list[Any]:
    """The inputs in order, without weights that are listed as inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in weights]


def dims_of(value: Any) -> Dims:
    """The axes of an input or output.

    Raises:
        ModelFormatError: It is no tensor, or has no shape.
    """
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ModelFormatError(
            f"{value.name} is a {value.type.WhichOneof('value') or 'value of unknown type'}, expected a tensor",
            advice="Export the model without sequences and maps, for example without ZipMap.",
        )
    if not kind.HasField("shape"):
        raise ModelFormatError(
            f"{value.name} has no known number of axes, expected a tensor of known rank",
            advice=f"Give its sizes, for example --input-shape {value.name}=1,3,224,224; "
            "or export the model again with the shapes of its inputs.",
        )
    return tuple(_axis(dim) for dim in kind.shape.dim)


def declared_dims(value: Any) -> Dims:
    """The axes that a model declares of an output; none where it declares nothing."""
    return dims_of(value) if value.type.tensor_type.HasField("shape") else ()


def _axis(dim: Any) -> Axis:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return dim.dim_param.strip() or None if dim.dim_param.strip() != "?" else None


def is_zero(dim: Any) -> bool:
    """True for a size of 0, which some exporters write for a free one."""
    return bool(dim.HasField("dim_value") and not dim.dim_value)


def set_dims(value: Any, dims: Dims) -> None:
    """Replace the axes of an input or output."""
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for axis in dims:
        dim = shape.dim.add()
        if isinstance(axis, int):
            dim.dim_value = axis
        elif axis:
            dim.dim_param = axis


def dtype_of(value: Any) -> DType:
    """The element type of an input or output."""
    return DType.of(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def all_graphs(graph: Any) -> Iterator[Any]:
    """A graph and the graphs in its nodes, branches and loop bodies too."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from all_graphs(inner)


def inner_graphs(node: Any) -> Iterator[Any]:
    """The branches or the body in a node."""
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            if inner.node or inner.output:
                yield inner


def names_read(model: onnx.ModelProto) -> set[str]:
    """Names that nodes read, or that graphs give out."""
    graphs = list(all_graphs(model.graph))
    read = {name for graph in graphs for node in graph.node for name in node.input}
    return read | {value.name for graph in graphs for value in graph.output}


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever nodes read or make them; inputs, outputs and weights keep their names."""
    for graph in all_graphs(model.graph):
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = names.get(name, name)
            for index, name in enumerate(node.output):
                node.output[index] = names.get(name, name)
        if graph is not model.graph:
            for value in graph.output:
                value.name = names.get(value.name, value.name)


def drop_stored_shapes(model: onnx.ModelProto) -> None:
    """Remove the stored shapes of intermediate tensors, which no longer hold once sizes are settled."""
    for graph in all_graphs(model.graph):
        del graph.value_info[:]
