"""Bindings of an artifact: the source's interface, mapped to the artifact's tensors."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from converters.graph.graph import Graph
from converters.graph.interface import SourceInput, artifact_permute
from edgekit.bundle.bindings import Binding
from edgekit.tensors import TensorSpec

NOTHING = msgspec.UNSET


def input_bindings(graph: Graph, bind: Callable[[TensorSpec], Binding]) -> tuple[Binding, ...]:
    """The bindings of all inputs of the source; fixed and unread ones have no tensor in the artifact.

    Args:
        graph: The canonical graph, with the interface of its source.
        bind: The binding of the logical tensor of one of the graph's inputs.
    """
    state = graph.interface.state
    bindings = []
    for one in graph.interface.inputs:
        if not one.in_graph:
            bindings.append(_absent(one))
            continue
        fed = state.get(one.spec.name, NOTHING)
        bindings.append(msgspec.structs.replace(bind(one.spec), state=fed))
    return tuple(bindings)


def _absent(one: SourceInput) -> Binding:
    value = NOTHING if one.value is None else one.value
    return Binding(one.spec, one.spec, value=value, unread=True if one.unread else NOTHING)


def output_spec(graph: Graph, spec: TensorSpec) -> TensorSpec:
    """The logical tensor of an output of `graph`; a part of a split output has a free batch, which comes first."""
    known = {one.name: one for one in graph.interface.outputs}
    return known.get(spec.name, TensorSpec(spec.name, spec.dtype, (None, *spec.shape[1:])))


def bound(
    spec: TensorSpec,
    artifact: TensorSpec,
    permute: tuple[int, ...] = (),
    scale: float | None = None,
    zero_point: int = 0,
) -> Binding:
    """One binding.

    Args:
        spec: The logical tensor.
        artifact: The artifact's tensor, with the batch first.
        permute: The transposition from the canonical tensor to the artifact's; empty for none.
        scale, zero_point: Of an integer tensor.
    """
    return Binding(spec, artifact, artifact_permute(spec, permute), scale, zero_point)
