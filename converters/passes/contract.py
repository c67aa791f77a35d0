"""What every pass promises: when it applies, what holds afterwards, and whether it changed anything."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from converters.graph.graph import Graph
from edgekit.errors import ConversionError
from edgekit.tensors import TensorSpec


class GraphPass(Protocol):
    """One step on the canonical graph. It never changes the graph that it is given."""

    @property
    def name(self) -> str:
        """As reports and errors call it."""
        ...

    def applies(self, graph: Graph) -> bool:
        """The precondition: False where there is nothing for it to do."""
        ...

    def run(self, graph: Graph) -> Graph:
        """The new graph, with the same inputs and, unless it is an OutputPass, the same outputs."""
        ...

    def holds(self, graph: Graph) -> bool:
        """The postcondition, asked of the new graph."""
        ...


@runtime_checkable
class OutputPass(GraphPass, Protocol):
    """A step that gives the graph other outputs, and says beforehand which."""

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """The outputs that `run` will give."""
        ...


class PassResult(msgspec.Struct, frozen=True):
    """A graph after one pass; `modified` is measured and not claimed."""

    graph: Graph
    name: str
    modified: bool


def run_pass(step: GraphPass, graph: Graph) -> PassResult:
    """Run one pass and hold it to its contract.

    Raises:
        ConversionError: it changed the interface, or its postcondition does not hold.
    """
    if not step.applies(graph):
        return PassResult(graph, step.name, False)
    before = graph.to_bytes()
    after = step.run(graph)
    if graph.to_bytes() != before:
        raise ConversionError(f"pass {step.name} changed the graph that it was given")
    outputs = step.outputs(graph) if isinstance(step, OutputPass) else graph.outputs
    if (after.inputs, after.outputs) != (graph.inputs, outputs):
        found, expected = _interface(after.inputs, after.outputs), _interface(graph.inputs, outputs)
        raise ConversionError(f"pass {step.name} changed the interface: found {found}, expected {expected}")
    if not step.holds(after):
        raise ConversionError(f"pass {step.name} ran, but what it promises does not hold of the new graph")
    return PassResult(after, step.name, after.to_bytes() != before)


def _interface(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype.value}{spec.shape_text}" for spec in (*inputs, *outputs))
