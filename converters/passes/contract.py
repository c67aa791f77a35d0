"""The contract of a pass: precondition, postcondition, and a measured `modified` flag."""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

import msgspec

from converters.graph.graph import Graph
from edgekit.errors import ConversionError
from edgekit.tensors import TensorSpec


class GraphPass(Protocol):
    """One rewriting step on the canonical graph. It never changes the graph passed in."""

    @property
    def name(self) -> str:
        """The name in reports and errors."""
        ...

    def applies(self, graph: Graph) -> bool:
        """The precondition: False if the pass has nothing to do."""
        ...

    def run(self, graph: Graph) -> Graph:
        """The new graph, with the same inputs and, unless it is an OutputPass, the same outputs."""
        ...

    def holds(self, graph: Graph) -> bool:
        """The postcondition, checked on the new graph."""
        ...


@runtime_checkable
class OutputPass(GraphPass, Protocol):
    """A pass that replaces outputs of the graph and announces the new ones."""

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """The outputs that `run` will give."""
        ...


class PassResult(msgspec.Struct, frozen=True):
    """A graph after one pass; `modified` is found by comparing bytes before and after."""

    graph: Graph
    name: str
    modified: bool


def run_pass(step: GraphPass, graph: Graph) -> PassResult:
    """Run one pass and check its contract.

    Raises:
        ConversionError: The pass changed its input graph or the interface, or its postcondition does not hold.
    """
    if graph.opaque is not None or not step.applies(graph):  # passes see operators, which an opaque graph hides
        return PassResult(graph, step.name, False)
    before = _digest(graph)
    after = step.run(graph)
    if _digest(graph) != before:
        raise ConversionError(f"pass {step.name} changed its input graph instead of a copy")
    outputs = step.outputs(graph) if isinstance(step, OutputPass) else graph.outputs
    if (after.inputs, after.outputs) != (graph.inputs, outputs):
        found, expected = _interface(after.inputs, after.outputs), _interface(graph.inputs, outputs)
        raise ConversionError(f"pass {step.name} changed the interface: found {found}, expected {expected}")
    if graph.has_interface and not after.has_interface:
        after = after.with_interface(graph.interface)  # some tools drop metadata, which holds the source's interface
    if not step.holds(after):
        raise ConversionError(f"pass {step.name} ran, but its postcondition does not hold for the new graph")
    if _digest(after) == before:
        return PassResult(graph, step.name, False)
    return PassResult(after.compact(), step.name, True)


def _digest(graph: Graph) -> bytes:
    """Stands for the bytes of a graph, which take the memory of its weights."""
    return hashlib.blake2b(graph.to_bytes()).digest()


def _interface(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype.value}{spec.shape_text}" for spec in (*inputs, *outputs))
