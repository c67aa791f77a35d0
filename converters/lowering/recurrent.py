"""Recurrent layers, step by step: the input's share of every step is one dense layer, the state's is one a step.

LiteRT's own LSTM operator cannot be quantized by ai-edge-quantizer and is left alone by delegates; there is none for
GRU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, given, known, lowers, optional
from converters.lowering.values import Value, of

MAX_STEPS = 512
MOST_JOINED = 5  # inputs that XNNPACK's concatenation takes
# One step: (share of the input, recurrent weights, their bias, states) to the new states; the first is the answer.
CellStep = Callable[[Any, Any, Any, list[Any]], list[Any]]


@lowers("LSTM")
def lstm(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """LSTM with the usual activations, one way or both."""
    if optional(inputs, 7) is not None or attrs.get("input_forget"):
        raise CannotLowerError("peepholes, or input_forget")
    _require(attrs, ("Sigmoid", "Tanh", "Tanh"))

    def step(share: Any, weights: Any, bias: Any, states: list[Any]) -> list[Any]:
        hidden, cell = states
        gates = share + tf.matmul(hidden, weights) + bias
        sigmoids, last = _parted(gates, 3 * weights.shape[0])
        enter, leave, keep = tf.split(tf.sigmoid(sigmoids), 3, axis=1)
        cell = keep * cell + enter * tf.tanh(last)
        return [leave * tf.tanh(cell), cell]

    return _run(inputs, attrs, step, gates=4, states=2, sums_bias=True)


@lowers("GRU")
def gru(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """GRU with the usual activations, both ways of resetting, one direction or both."""
    _require(attrs, ("Sigmoid", "Tanh"))
    after = bool(attrs.get("linear_before_reset"))

    def step(share: Any, weights: Any, bias: Any, states: list[Any]) -> list[Any]:
        [hidden] = states
        size = weights.shape[0]
        share_gates, share_new = _parted(share, 2 * size)
        if after:
            own_gates, own_new = _parted(tf.matmul(hidden, weights) + bias, 2 * size)
        else:
            own_gates = tf.matmul(hidden, np.ascontiguousarray(weights[:, : 2 * size])) + bias[: 2 * size]
        update, reset = tf.split(tf.sigmoid(share_gates + own_gates), 2, axis=1)
        if after:
            new = tf.tanh(share_new + reset * own_new)
        else:
            new = tf.tanh(
                share_new + tf.matmul(reset * hidden, np.ascontiguousarray(weights[:, 2 * size :])) + bias[2 * size :]
            )
        return [new + update * (hidden - new)]

    return _run(inputs, attrs, step, gates=3, states=1, sums_bias=False)


@lowers("RNN")
def rnn(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """RNN with tanh."""
    _require(attrs, ("Tanh",))

    def step(share: Any, weights: Any, bias: Any, states: list[Any]) -> list[Any]:
        return [tf.tanh(share + tf.matmul(states[0], weights) + bias)]

    return _run(inputs, attrs, step, gates=1, states=1, sums_bias=True)


def _parted(tensor: Any, place: int) -> tuple[Any, Any]:
    """The columns before `place` and the others: slices, since delegates take no split into uneven parts."""
    return tensor[:, :place], tensor[:, place:]


def _require(attrs: dict[str, Any], usual: tuple[str, ...]) -> None:
    names = [name.decode() if isinstance(name, bytes) else name for name in attrs.get("activations") or ()]
    if any(name.lower() != usual[place % len(usual)].lower() for place, name in enumerate(names)):
        raise CannotLowerError(f"the activations {', '.join(names)}, expected {', '.join(usual)}")
    if attrs.get("clip"):
        raise CannotLowerError("clip")


def _run(
    inputs: Inputs, attrs: dict[str, Any], step: CellStep, *, gates: int, states: int, sums_bias: bool
) -> tuple[Value, ...]:
    """Every step of every direction, and the outputs in ONNX's layout."""
    batch_first = bool(attrs.get("layout"))
    source = given(inputs[0]).plain()
    if batch_first:
        source = tf.transpose(source, (1, 0, 2))
    steps, rows, _ = (int(size) for size in source.shape)
    lengths = optional(inputs, 4)
    if lengths is not None and (not lengths.constant or np.any(lengths.plain() != steps)):
        raise CannotLowerError("sequences of other lengths than the input's")
    if steps > MAX_STEPS:
        raise CannotLowerError(f"{steps} steps (at most {MAX_STEPS} are unrolled)")
    direction = attrs.get("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    answers, last = [], []
    for way, backwards in enumerate(ways):
        weights = _weights(inputs, way, gates, sums_bias)
        begin = [
            _begin(optional(inputs, 5 + place), way, rows, weights[1].shape[0], batch_first) for place in range(states)
        ]
        outputs, final = _one_way(source, weights, begin, step, backwards)
        answers.append(outputs)
        last.append(final)
    sequence = _joined([_joined([_wide(answer[at], 4) for answer in answers], 1) for at in range(steps)], 0)
    finals = [_joined([_wide(final[place], 3) for final in last], 0) for place in range(states)]
    if batch_first:
        sequence = tf.transpose(sequence, (2, 0, 1, 3))
        finals = [tf.transpose(final, (1, 0, 2)) for final in finals]
    return (of(sequence), *map(of, finals))


def _wide(tensor: Any, rank: int) -> Any:
    return tf.reshape(tensor, [1] * (rank - 2) + [int(size) for size in tensor.shape])


def _joined(tensors: list[Any], axis: int) -> Any:
    """One concatenation, or a tree of those that XNNPACK takes."""
    while len(tensors) > 1:
        tensors = [
            tf.concat(tensors[start : start + MOST_JOINED], axis) if len(tensors) - start > 1 else tensors[start]
            for start in range(0, len(tensors), MOST_JOINED)
        ]
    return tensors[0]


def _weights(inputs: Inputs, way: int, gates: int, sums_bias: bool) -> tuple[Any, Any, Any, Any]:
    """Weights of the input and of the state (in, out), and a bias for each."""
    first = known(inputs[1], "weights")[way].T
    second = known(inputs[2], "recurrent weights")[way].T
    both = optional(inputs, 3)
    width = gates * second.shape[0]
    bias = known(both, "bias")[way] if both is not None else np.zeros(2 * width, np.float32)
    mine, own = bias[:width], bias[width:]
    if sums_bias:
        mine, own = mine + own, np.zeros_like(own)
    return np.ascontiguousarray(first), np.ascontiguousarray(second), mine, own


def _begin(value: Value | None, way: int, rows: int, size: int, batch_first: bool) -> Any:
    if value is None:
        return None
    plain = value.plain()
    return tf.convert_to_tensor(plain[:, way] if batch_first else plain[way])


def _one_way(
    source: Any, weights: Any, begin: list[Any], step: CellStep, backwards: bool
) -> tuple[list[Any], list[Any]]:
    first, second, mine, own = weights
    steps, rows, width = (int(size) for size in source.shape)
    shares = tf.nn.bias_add(tf.matmul(tf.reshape(source, (steps * rows, width)), first), mine)
    states = [tf.zeros((rows, second.shape[0])) if state is None else state for state in begin]
    answers: list[Any] = [None] * steps
    for at in reversed(range(steps)) if backwards else range(steps):
        states = step(shares[at * rows : (at + 1) * rows], second, own, states)
        answers[at] = states[0]
    return answers, states
