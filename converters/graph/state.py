"""State of a model: outputs that are inputs of the next call of the same stream, as the user names them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from converters.graph.graph import Graph
from edgekit.errors import SettingsError
from edgekit.tensors import TensorSpec

FORM = "Give for example --state hn=h: the output hn is the input h of the next call."


def with_state(graph: Graph, state: Mapping[str, str]) -> Graph:
    """The graph of a source whose outputs feed inputs.

    Args:
        graph: The canonical graph.
        state: The input that each output feeds, by the output's name; empty for a model without state.

    Raises:
        SettingsError: A name is unknown, shapes or dtypes differ, or nothing remains for clients. All faults are named.
    """
    if not state:
        return graph
    faults = _faults(graph, state)
    if faults:
        raise SettingsError("--state does not fit the model: " + "; ".join(faults), advice=_advice(graph))
    feeds = {fed: output for output, fed in state.items()}
    return graph.with_interface(msgspec.structs.replace(graph.interface, state=feeds))


def _faults(graph: Graph, state: Mapping[str, str]) -> list[str]:
    inputs = {one.spec.name: one for one in graph.interface.inputs}
    outputs = {spec.name: spec for spec in graph.interface.outputs}
    faults, fed = [], set[str]()
    for output, name in state.items():
        if output not in outputs:
            faults.append(f"it has no output {output!r}, its outputs are {', '.join(outputs)}")
        if name not in inputs:
            faults.append(f"it has no input {name!r}, its inputs are {', '.join(inputs)}")
        elif not inputs[name].in_graph:
            faults.append(f"input {name} is {'fixed' if inputs[name].value is not None else 'never read'}")
        elif name in fed:
            faults.append(f"input {name} is fed twice")
        elif output in outputs and not _alike(inputs[name].spec, outputs[output]):
            one, other = inputs[name].spec, outputs[output]
            faults.append(
                f"input {name} is {one.dtype.value} {one.shape_text}, "
                f"output {output} is {other.dtype.value} {other.shape_text}"
            )
        fed.add(name)
    left = [name for name, one in inputs.items() if one.in_graph and name not in fed]
    if not faults and (not left or len(state) == len(outputs)):
        faults.append("every input or every output is state, and clients need at least one of each")
    return faults


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def likely_state(graph: Graph) -> dict[str, str]:
    """Outputs that look like the next value of an input, by their shape and name; for hints only."""
    found: dict[str, str] = {}
    for one in graph.interface.inputs:
        for output in graph.interface.outputs:
            if one.in_graph and _alike(one.spec, output) and _related(one.spec.name, output.name):
                found.setdefault(output.name, one.spec.name)
    return found


def state_hint(graph: Graph) -> str:
    """A sentence for people where outputs look like state and none was named; else empty."""
    likely, read = likely_state(graph), [one for one in graph.interface.inputs if one.in_graph]
    if graph.interface.state or not likely or len(likely) in (len(read), len(graph.interface.outputs)):
        return ""
    options = " ".join(f"--state {output}={fed}" for output, fed in likely.items())
    return f"the model may have state: if {', '.join(likely)} is the next value of its input, give {options}"


def _related(name: str, output: str) -> bool:
    """True where one name is the other with something added, as in h and hn, state and new_state, c_in and c_out."""
    one, other = (_root(text) for text in (name, output))
    return bool(one) and one == other


def _root(name: str) -> str:
    """A name without the words that say whether it is the state before or after a call."""
    words = [word for word in name.lower().replace(".", "_").replace("/", "_").split("_") if word not in _TIMES]
    root = "".join(words)
    return root[:-1] if len(root) > 1 and root[-1] in "n01" else root


_TIMES = {
    "in",
    "out",
    "new",
    "next",
    "prev",
    "previous",
    "initial",
    "init",
    "input",
    "output",
    "old",
    "last",
    "present",
    "past",
}


def _advice(graph: Graph) -> str:
    likely = " ".join(f"--state {output}={fed}" for output, fed in likely_state(graph).items())
    return f"Give {likely}." if likely else FORM
