"""Recognize GRU, LSTM and plain recurrent cells from the symbols of one step, and give their ONNX weights.

The formulas are those of the operators GRU, LSTM and RNN in the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from converters.passes.loops.step import STEP_UNARY, Affine, Known, Term, Value
from edgekit.tensors import Array


class Cell(msgspec.Struct, frozen=True, eq=False):
    """One recurrent layer in one direction.

    Attributes:
        op: ``GRU``, ``LSTM`` or ``RNN``.
        weights: (1, gates * u, in) float32, in ONNX's order.
        recurrent: (1, gates * u, u) float32.
        bias: (1, 2 * gates * u) float32: biases of the input, then biases of the state.
        states: Names of the states in the operator's order: h, and for an LSTM c.
        activations: ONNX names of the activations.
        attributes: Further attributes of the operator.
    """

    op: str
    weights: Array
    recurrent: Array
    bias: Array
    states: tuple[str, ...]
    activations: tuple[str, ...]
    attributes: dict[str, int]


def cell_of(after: Mapping[str, Value]) -> Cell | None:
    """The cell that computes the new states `after`, by state name; None if it is no known cell."""
    states = {name: value for name, value in after.items() if isinstance(value, Term)}
    if len(states) != len(after):
        return None
    if len(states) == 1:
        [(name, value)] = states.items()
        return _gru(name, value) or _plain(name, value)
    if len(states) == 2:
        one, other = states
        return _lstm(one, other, states) or _lstm(other, one, states)
    return None


def _plain(name: str, value: Term) -> Cell | None:
    """Plain RNN: h' = f(x W + h R + b)."""
    gate = _gate(value, name)
    return _cell("RNN", [gate], [None], (name,), (value.op,)) if gate else None


def _gru(name: str, value: Term) -> Cell | None:
    """GRU: h' = z h + (1 - z) n, with n = f(x W + b + r (h R + c)), or f(x W + b + (r h) R) with an early reset."""
    for kept, fresh in _both_orders(value, "Add"):
        update, new = _mix(kept, fresh, name)
        if update is None or new is None or new.op not in STEP_UNARY:
            continue
        for share, reset in _both_orders(new.parts[0], "Add"):
            parts = _late_reset(share, reset, name) or _early_reset(share, reset, name)
            if parts is None or update.op != parts[0].op:
                continue
            resetting, before, own, is_after = parts
            gates = [_gate(update, name), _gate(resetting, name), before]
            if gates[0] is None or gates[1] is None:
                continue
            names = (update.op, new.op)
            return _cell("GRU", gates, [None, None, own], (name,), names, linear_before_reset=int(is_after))
    return None


def _mix(kept: Any, fresh: Any, name: str) -> tuple[Term | None, Term | None]:
    """Take z and n out of z h + (1 - z) n."""
    for update, state in _both_orders(kept, "Mul"):
        for rest, new in _both_orders(fresh, "Mul"):
            if _is_state(state, name) and _is_rest(rest, update) and isinstance(update, Term) and isinstance(new, Term):
                return update, new
    return None, None


def _is_rest(value: Any, update: Any) -> bool:
    if not (isinstance(value, Term) and value.op == "Sub" and value.parts[1] is update):
        return False
    one = value.parts[0]
    return isinstance(one, Known) and not one.steps and one.value.size == 1 and float(one.value.reshape(())) == 1.0


def _late_reset(share: Any, reset: Any, name: str) -> tuple[Term, Affine, Affine, bool] | None:
    for gate, own in _both_orders(reset, "Mul"):
        if isinstance(gate, Term) and _reads(share, x=True) and _reads(own, state=name):
            return gate, share, own, True
    return None


def _early_reset(share: Any, reset: Any, name: str) -> tuple[Term, Affine, Affine, bool] | None:
    if not (isinstance(reset, Term) and reset.op == "MatMul" and _reads(share, x=True)):
        return None
    for gate, state in _both_orders(reset.parts[0], "Mul"):
        if isinstance(gate, Term) and _is_state(state, name):
            weights = reset.parts[1].value
            return gate, share, Affine(np.zeros(weights.shape[1], np.float32), recurrent=weights, state=name), False
    return None


def _lstm(hidden: str, cell: str, after: Mapping[str, Term]) -> Cell | None:
    """LSTM: c' = f c + i n and h' = o g(c')."""
    for leave, squashed in _both_orders(after[hidden], "Mul"):
        if not (isinstance(squashed, Term) and squashed.op in STEP_UNARY and squashed.parts[0] is after[cell]):
            continue
        for kept, fresh in _both_orders(after[cell], "Add"):
            for keep, state in _both_orders(kept, "Mul"):
                for enter, new in _both_orders(fresh, "Mul"):
                    terms = (enter, leave, keep, new)
                    gates = [_gate(term, hidden) for term in terms]
                    sigmoids = {term.op for term in terms[:3] if isinstance(term, Term)}
                    if _is_state(state, cell) and all(gates) and len(sigmoids) == 1:
                        names = (enter.op, new.op, squashed.op)
                        return _cell("LSTM", gates, [None] * 4, (hidden, cell), names)
    return None


def _gate(value: Any, state: str) -> Affine | None:
    """The linear part of an activation, if it reads the input and `state`."""
    if isinstance(value, Term) and value.op in STEP_UNARY and _reads(value.parts[0], x=True, state=state):
        linear: Affine = value.parts[0]
        return linear
    return None


def _reads(value: Any, *, x: bool = False, state: str = "") -> bool:
    return isinstance(value, Affine) and (value.weights is not None) == x and value.state == state


def _is_state(value: Any, name: str) -> bool:
    return isinstance(value, Term) and (value.op, value.name) == ("state", name)


def _both_orders(value: Any, op: str) -> Iterator[tuple[Any, Any]]:
    """Both orders of the two operands if `value` is an `op`; nothing otherwise."""
    if isinstance(value, Term) and value.op == op:
        one, other = value.parts
        yield one, other
        yield other, one


def _cell(
    op: str,
    gates: list[Any],
    own: list[Affine | None],
    states: tuple[str, ...],
    activations: tuple[str, ...],
    **attributes: int,
) -> Cell | None:
    """Build a Cell from `gates` in ONNX's order; an item of `own` is the state part of a gate kept apart."""
    recurrent: list[Any] = [gate if apart is None else apart for gate, apart in zip(gates, own, strict=True)]
    size = len(gates[0].bias)
    wide = all(gate.bias.shape == (size,) for gate in (*gates, *recurrent))
    if not wide or any(part.recurrent.shape[0] != size for part in recurrent):
        return None
    later = [np.zeros(size, np.float32) if apart is None else apart.bias for apart in own]
    return Cell(
        op=op,
        weights=_rows([gate.weights.T for gate in gates]),
        recurrent=_rows([part.recurrent.T for part in recurrent]),
        bias=_rows([*(gate.bias for gate in gates), *later]),
        states=states,
        activations=activations,
        attributes=attributes,
    )


def _rows(parts: list[Array]) -> Array:
    return np.ascontiguousarray(np.concatenate(parts)[None].astype(np.float32))
