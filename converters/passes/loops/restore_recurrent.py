"""Replace Loops that are recurrent layers by ONNX's operators GRU, LSTM and RNN, which every backend supports.

Keras 3 writes its cells differently from the patterns that the rewriters of tf2onnx look for: it slices the state's
part, where Keras 2 splits it, and splits its bias inside the loop. A GRU therefore arrives as a Loop, and so does an
LSTM with recurrent dropout. This pass recognizes a cell by the linear parts of a step, whichever nodes compute them.
Any other Loop stays.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.graph.graph import Graph, attributes
from converters.passes.loops.cells import Cell, cell_of
from converters.passes.loops.step import Known, Term, Value, evaluate
from converters.passes.simplify import Simplify
from edgekit.tensors import Array

INT64 = np.iinfo(np.int64)
FIRST_STATE = {"GRU": slice(5, 6), "LSTM": slice(5, 7), "RNN": slice(5, 6)}  # indices of the inputs
Shape = tuple[int | None, ...]


class RestoreRecurrent:
    """Replaces each Loop over a whole sequence whose step is a cell, and simplifies reversals and zero first states."""

    name = "restore-recurrent"

    def applies(self, graph: Graph) -> bool:
        """True if there is such a Loop, a ReverseSequence of a whole sequence, or a first state of zeros."""
        return _first_loop(graph) is not None or bool(_reversals(graph)) or bool(_from_zero(graph))

    def run(self, graph: Graph) -> Graph:
        """The simplified graph with GRU, LSTM and RNN nodes instead of those Loops."""
        while self.applies(graph):
            match = _first_loop(graph)
            graph = _restored(graph, match) if match is not None else _with_slices(_without_zeros(graph))
            graph = Simplify().run(graph)  # shapes after a Loop are unknown until it is replaced
        return graph

    def holds(self, graph: Graph) -> bool:
        """No such node is left."""
        return not self.applies(graph)


class _RecurrentLoop(msgspec.Struct, frozen=True, eq=False):
    """A Loop that is a cell: its index among the nodes, the sequence that it reads, and the role of its outputs."""

    node_index: int
    cell: Cell
    sequence: str
    first_values: dict[str, str]
    ends: dict[str, str]
    answers: list[str]


def _first_loop(graph: Graph) -> _RecurrentLoop | None:
    for node_index, node in enumerate(graph.nodes):
        if node.op_type == "Loop" and (match := _read(graph, node_index, node)) is not None:
            return match
    return None


def _read(graph: Graph, node_index: int, node: Any) -> _RecurrentLoop | None:
    """Recognize the Loop at node number `node_index`; None if it is no cell or can end early."""
    body, constants = attributes(node)["body"], graph.constants
    count, condition = (constants.get(name) for name in node.input[:2])
    if count is None or int(count.reshape(())) < 1 or (node.input[1] and (condition is None or not condition.all())):
        return None
    steps = np.arange(int(count.reshape(())))
    inner, first_values = [value.name for value in body.input], list(node.input[2:])
    outer = {name: Known(constants[name]) for name in _names(body) if name in constants}
    values: dict[str, Value] = {**outer, inner[0]: Known(steps, True)}
    updates = dict(zip(inner[2:], [_origin(body, value.name) for value in body.output[1:]], strict=False))
    counters, states = {}, []
    for name, first in zip(inner[2:], first_values, strict=True):
        if updates[name] == name:
            values.update({name: Known(constants[first])} if first in constants else {})
        elif first in constants and constants[first].dtype.kind == "i" and constants[first].size == 1:
            counters[name] = constants[first].reshape(()) + steps
            values[name] = Known(counters[name].astype(constants[first].dtype), True)
        else:
            states.append(name)
            values[name] = Term("state", name=name)
    gathered: set[str] = set()

    def sequence(name: str, indices: Known) -> Term | None:
        gathered.add(name)
        return Term("x") if indices.steps and np.array_equal(indices.value, steps) else None

    symbols = evaluate(body, values, sequence, graph.opset)
    counted = all(_counts_up(symbols.get(updates[name]), value + 1) for name, value in counters.items())
    if not counted or len(gathered) != 1 or not _never_ends_early(symbols.get(body.output[0].name)):
        return None
    after = {name: symbols[updates[name]] for name in states if updates[name] in symbols}
    cell = cell_of(after) if len(after) == len(states) else None
    shape = graph.shapes.get(next(iter(gathered)), ())
    if cell is None or len(shape) != 3 or shape[0] != len(steps):
        return None
    kinds = [
        _kind(inner, states, after, cell, symbols, index, value.name) for index, value in enumerate(body.output[1:])
    ]
    used = {name for other in graph.nodes for name in other.input} | {value.name for value in graph.model.graph.output}
    if any(kind == "" and name in used for kind, name in zip(kinds, node.output, strict=True)):
        return None
    return _RecurrentLoop(
        node_index=node_index,
        cell=cell,
        sequence=next(iter(gathered)),
        first_values={name: first_values[inner.index(name) - 2] for name in cell.states},
        ends={kind: name for kind, name in zip(kinds, node.output, strict=True) if kind in states and name in used},
        answers=[name for kind, name in zip(kinds, node.output, strict=True) if kind == "answers" and name in used],
    )


def _kind(inner: Any, states: Any, after: Any, cell: Cell, symbols: Any, index: int, name: str) -> str:
    """The role of an output of the Loop: the name of a state, ``answers`` (one per step), or "" if unknown."""
    if index < len(inner) - 2:
        return inner[2 + index] if inner[2 + index] in states else ""
    return "answers" if symbols.get(name) is after[cell.states[0]] else ""


def _names(body: Any) -> set[str]:
    return {name for node in body.node for name in node.input}


def _origin(body: Any, name: str) -> str:
    """The name at the start of the chain of Identity nodes that ends in `name`."""
    sources = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}
    while name in sources:
        name = sources[name]
    return name


def _counts_up(value: Value | None, expected: Array) -> bool:
    return isinstance(value, Known) and value.steps and np.array_equal(value.value, expected)


def _never_ends_early(condition: Value | None) -> bool:
    """True if the Loop's own condition ends it at no step before the last."""
    return isinstance(condition, Known) and bool((condition.value[:-1] if condition.steps else condition.value).all())


# --- writing


def _restored(graph: Graph, match: _RecurrentLoop) -> Graph:
    """The graph with the operator instead of the Loop; `Simplify` drops nodes that are no longer read."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    loop, cell = model.graph.node[match.node_index], match.cell
    stem = loop.output[0]
    source, backwards = _unreversed(graph, match.sequence)
    weights = {"weights": cell.weights, "recurrent": cell.recurrent, "bias": cell.bias}
    known = {"ways": np.array([0]), "way": np.array([1]), "last": np.array([-1]), "end": np.array([INT64.min])}
    for name, value in (*weights.items(), *known.items()):
        model.graph.initializer.append(numpy_helper.from_array(value, f"{stem}.{name}"))
    first_values = [_unless_zero(graph, match.first_values[name]) for name in cell.states]
    made = [
        helper.make_node("Unsqueeze", [name, f"{stem}.ways"], [f"{stem}.begin{place}"])
        for place, name in enumerate(first_values)
        if name
    ]
    first = (
        ["", *(f"{stem}.begin{place}" if name else "" for place, name in enumerate(first_values))]
        if any(first_values)
        else []
    )
    operator = helper.make_node(
        cell.op,
        [source, *(f"{stem}.{name}" for name in weights), *first],
        [f"{stem}.answers", *(f"{stem}.state{place}" for place in range(len(cell.states)))],
        name=_free_name(graph, loop.name, cell.op),
        hidden_size=cell.recurrent.shape[2],
        direction="reverse" if backwards else "forward",
        activations=list(cell.activations),
        **cell.attributes,
    )
    made.append(operator)
    for place, name in enumerate(cell.states):
        if name in match.ends:
            made.append(helper.make_node("Squeeze", [f"{stem}.state{place}", f"{stem}.ways"], [match.ends[name]]))
    for name in match.answers:
        _connect_last_step(graph, model, name, f"{stem}.state0", graph.shapes[match.sequence][0])
        made += _in_order(stem, name, backwards)
    model.graph.node.remove(loop)
    for offset, node in enumerate(made):
        node.name = node.name or node.output[0]
        model.graph.node.insert(match.node_index + offset, node)
    return Graph(model)


def _in_order(stem: str, name: str, backwards: bool) -> list[Any]:
    """Nodes that turn the operator's output (steps, 1, rows, u) into the Loop's (steps, rows, u), in its order."""
    plain = f"{stem}.plain" if backwards else name
    made = [helper.make_node("Squeeze", [f"{stem}.answers", f"{stem}.way"], [plain])]
    if backwards:
        limits = [f"{stem}.{part}" for part in ("last", "end", "ways", "last")]
        made.append(helper.make_node("Slice", [plain, *limits], [name]))
    return made


def _connect_last_step(graph: Graph, model: onnx.ModelProto, answers: str, state: str, steps: int | None) -> None:
    """Connect readers of the last step only to the state (1, rows, u), so that backends drop the other steps."""
    results = {value.name for value in graph.model.graph.output}
    shape, last = (steps, None, None), {0: (-1, None, 1)}
    lasts = {
        node.output[0]
        for node in graph.consumers(answers)
        if node.op_type == "Slice" and node.output[0] not in results and _limits(graph, node, shape) == last
    }
    for node in model.graph.node:
        node.input[:] = [state if name in lasts else name for name in node.input]


def _free_name(graph: Graph, loop: str, op: str) -> str:
    """A free name for the operator, after the layer that contains the Loop."""
    layer = loop.rpartition("/")[0]
    name, taken = f"{layer}/{op}" if layer else op, {node.name for node in graph.nodes}
    while name in taken:
        name += "_"
    return name


def _unless_zero(graph: Graph, name: str) -> str:
    """`name`, or "" for a state of zeros, which is the operators' default."""
    return "" if _is_zero(graph, name) else name


def _is_zero(graph: Graph, name: str) -> bool:
    if name in graph.constants:
        return not graph.constants[name].any()
    maker = graph.maker(name)
    if maker is None or maker.op_type not in ("Concat", "Expand", "Unsqueeze"):
        return False
    return all(_is_zero(graph, part) for part in (maker.input if maker.op_type == "Concat" else maker.input[:1]))


def _from_zero(graph: Graph) -> list[Any]:
    """Operators with an explicit first state of zeros; exporters compute its shape in several nodes."""
    return [
        node
        for node in graph.nodes
        if node.op_type in FIRST_STATE
        and any(name and _is_zero(graph, name) for name in node.input[FIRST_STATE[node.op_type]])
    ]


def _without_zeros(graph: Graph) -> Graph:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for place, node in enumerate(graph.nodes):
        if node in _from_zero(graph):
            states = FIRST_STATE[node.op_type]
            model.graph.node[place].input[states] = [name and _unless_zero(graph, name) for name in node.input[states]]
    return Graph(model)


# --- reversed sequences


def _unreversed(graph: Graph, name: str) -> tuple[str, bool]:
    """The tensor that `name` is the reversal of (along axis 0) and True; `name` and False if it is no reversal."""
    node = graph.maker(name)
    if node is not None and _reversed_axis(graph, node) == 0:
        return str(node.input[0]), True
    return name, False


def _reversals(graph: Graph) -> list[Any]:
    return [n for n in graph.nodes if n.op_type == "ReverseSequence" and _reversed_axis(graph, n) is not None]


def _reversed_axis(graph: Graph, node: Any) -> int | None:
    """The axis that a node reverses over its whole length, or None."""
    if node.op_type == "Slice":
        limits = _limits(graph, node, graph.shapes.get(node.input[0], ()))
        axes = [axis for axis, cut in limits.items() if cut == (None, None, -1)]
        return axes[0] if len(limits) == 1 and axes else None
    if node.op_type != "ReverseSequence":
        return None
    lengths, axis = node.input[1], int(attributes(node).get("time_axis", 0))
    maker = graph.maker(lengths)
    if maker is not None and maker.op_type == "Expand":
        lengths = maker.input[0]
    value, shape = graph.constants.get(lengths), graph.shapes.get(node.input[0], ())
    whole = value is not None and axis < len(shape) and shape[axis] is not None and np.all(value == shape[axis])
    return axis if whole else None


def _limits(graph: Graph, node: Any, shape: Shape) -> dict[int, tuple[int | None, int | None, int]]:
    """Start, end and step by axis of a Slice of `shape` with constant limits; None is the end of the axis."""
    parts = [graph.constants.get(name) for name in node.input[1:]]
    if len(parts) < 3 or any(part is None for part in parts) or not shape:
        return {}
    starts, ends, axes, *rest = (part.tolist() for part in parts if part is not None)
    limits = {}
    for start, end, axis, step in zip(starts, ends, axes, rest[0] if rest else [1] * len(starts), strict=True):
        size = shape[axis % len(shape)]
        if size is None:
            return {}
        indices = range(*slice(start, end, step).indices(size))
        limits[axis % len(shape)] = _normalized_limits(indices, size)
    return limits


def _normalized_limits(indices: range, size: int) -> tuple[int | None, int | None, int]:
    if indices == range(size - 1, -1, -1) and size > 1:
        return None, None, -1
    if indices == range(size - 1, size):
        return -1, None, 1
    return indices.start, indices.stop, indices.step


def _with_slices(graph: Graph) -> Graph:
    """Write whole reversals as slices, which every backend supports; two in a row along one axis cancel out."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for old in _reversals(graph):
        place, axis = list(graph.nodes).index(old), _reversed_axis(graph, old)
        before = graph.maker(old.input[0])
        if before is not None and _reversed_axis(graph, before) == axis:
            node = helper.make_node("Identity", [before.input[0]], list(old.output), name=old.name)
        else:
            limits = {"last": -1, "end": INT64.min, "axis": axis}
            for name, value in limits.items():
                model.graph.initializer.append(numpy_helper.from_array(np.array([value]), f"{old.output[0]}.{name}"))
            names = [f"{old.output[0]}.{part}" for part in ("last", "end", "axis", "last")]
            node = helper.make_node("Slice", [old.input[0], *names], list(old.output), name=old.name)
        model.graph.node[place].CopyFrom(node)
    return Graph(model)
