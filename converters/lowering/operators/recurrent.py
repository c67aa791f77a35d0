"""Recurrent layers, unrolled: one dense layer computes the input's part of all steps, and one per step the state's.

LiteRT's own LSTM operator cannot be quantized by litert-quantizer and is not supported by delegates. LiteRT has no GRU
operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, of

MAX_UNROLLED_STEPS = 512
MOST_JOINED = 5  # the most inputs of a concatenation in XNNPACK
# One step: (input part, recurrent weights, their bias, states) to the new states; the first is the step's output.
CellStep = Callable[[Any, Any, Any, list[Any]], list[Any]]


@lowers("LSTM")
def lstm(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """LSTM with the default activations, in one direction or both."""
    if optional(inputs, 7) is not None or attrs.get("input_forget"):
        raise CannotLowerError("peepholes, or input_forget")
    _require(attrs, ("Sigmoid", "Tanh", "Tanh"))

    def step(input_part: Any, weights: Any, bias: Any, states: list[Any]) -> list[Any]:
        hidden, cell = states
        gates = input_part + tf.matmul(hidden, weights) + bias
        sigmoids, last = _split_columns(gates, 3 * weights.shape[0])
        enter, leave, keep = tf.split(tf.sigmoid(sigmoids), 3, axis=1)
        cell = keep * cell + enter * tf.tanh(last)
        return [leave * tf.tanh(cell), cell]

    return _run(inputs, attrs, step, gates=4, states=2, sums_bias=True)


@lowers("GRU")
def gru(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """GRU with the default activations, either `linear_before_reset`, in one direction or both."""
    _require(attrs, ("Sigmoid", "Tanh"))
    late_reset = bool(attrs.get("linear_before_reset"))

    def step(input_part: Any, weights: Any, bias: Any, states: list[Any]) -> list[Any]:
        [hidden] = states
        size = weights.shape[0]
        input_gates, input_new = _split_columns(input_part, 2 * size)
        if late_reset:
            state_gates, state_new = _split_columns(tf.matmul(hidden, weights) + bias, 2 * size)
        else:
            state_gates = tf.matmul(hidden, np.ascontiguousarray(weights[:, : 2 * size])) + bias[: 2 * size]
        update, reset = tf.split(tf.sigmoid(input_gates + state_gates), 2, axis=1)
        if late_reset:
            new = tf.tanh(input_new + reset * state_new)
        else:
            new = tf.tanh(
                input_new + tf.matmul(reset * hidden, np.ascontiguousarray(weights[:, 2 * size :])) + bias[2 * size :]
            )
        return [new + update * (hidden - new)]

    return _run(inputs, attrs, step, gates=3, states=1, sums_bias=False)


@lowers("RNN")
def rnn(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """RNN with tanh, in one direction or both."""
    _require(attrs, ("Tanh",))

    def step(input_part: Any, weights: Any, bias: Any, states: list[Any]) -> list[Any]:
        return [tf.tanh(input_part + tf.matmul(states[0], weights) + bias)]

    return _run(inputs, attrs, step, gates=1, states=1, sums_bias=True)


def _split_columns(tensor: Any, column: int) -> tuple[Any, Any]:
    """The columns before `column` and the rest, by slices: delegates do not support uneven splits."""
    return tensor[:, :column], tensor[:, column:]


def _require(attrs: dict[str, Any], expected: tuple[str, ...]) -> None:
    names = [name.decode() if isinstance(name, bytes) else name for name in attrs.get("activations") or ()]
    if any(name.lower() != expected[index % len(expected)].lower() for index, name in enumerate(names)):
        raise CannotLowerError(f"the activations {', '.join(names)}, expected {', '.join(expected)}")
    if attrs.get("clip"):
        raise CannotLowerError("clip")


def _run(
    inputs: Inputs, attrs: dict[str, Any], step: CellStep, *, gates: int, states: int, sums_bias: bool
) -> tuple[Value, ...]:
    """Run all steps of each direction, and return the outputs in ONNX's layout."""
    batch_first = bool(attrs.get("layout"))
    source = required(inputs[0]).plain()
    if batch_first:
        source = tf.transpose(source, (1, 0, 2))
    steps, rows, _ = (int(size) for size in source.shape)
    lengths = optional(inputs, 4)
    if lengths is not None and (not lengths.constant or np.any(lengths.plain() != steps)):
        raise CannotLowerError("sequences with lengths different from the input's")
    if steps > MAX_UNROLLED_STEPS:
        raise CannotLowerError(f"{steps} steps (at most {MAX_UNROLLED_STEPS} are unrolled)")
    direction = attrs.get("direction", "forward")
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    answers, last = [], []
    for direction_index, backwards in enumerate(directions):
        weights = _weights(inputs, direction_index, gates, sums_bias)
        first_states = [
            _first_state(optional(inputs, 5 + state_index), direction_index, rows, weights[1].shape[0], batch_first)
            for state_index in range(states)
        ]
        outputs, final = _one_direction(source, weights, first_states, step, backwards)
        answers.append(outputs)
        last.append(final)
    sequence = _joined(
        [_joined([_wide(answer[step_index], 4) for answer in answers], 1) for step_index in range(steps)], 0
    )
    finals = [_joined([_wide(final[state_index], 3) for final in last], 0) for state_index in range(states)]
    if batch_first:
        sequence = tf.transpose(sequence, (2, 0, 1, 3))
        finals = [tf.transpose(final, (1, 0, 2)) for final in finals]
    return (of(sequence), *map(of, finals))


def _wide(tensor: Any, rank: int) -> Any:
    return tf.reshape(tensor, [1] * (rank - 2) + [int(size) for size in tensor.shape])


def _joined(tensors: list[Any], axis: int) -> Any:
    """Concatenate; with many tensors as a tree of concatenations small enough for XNNPACK."""
    while len(tensors) > 1:
        tensors = [
            tf.concat(tensors[start : start + MOST_JOINED], axis) if len(tensors) - start > 1 else tensors[start]
            for start in range(0, len(tensors), MOST_JOINED)
        ]
    return tensors[0]


def _weights(inputs: Inputs, direction_index: int, gates: int, sums_bias: bool) -> tuple[Any, Any, Any, Any]:
    """Weights of the input and of the state (in, out), and the bias of each."""
    first = constant(inputs[1], "weights")[direction_index].T
    second = constant(inputs[2], "recurrent weights")[direction_index].T
    both = optional(inputs, 3)
    width = gates * second.shape[0]
    bias = constant(both, "bias")[direction_index] if both is not None else np.zeros(2 * width, np.float32)
    input_bias, state_bias = bias[:width], bias[width:]
    if sums_bias:
        input_bias, state_bias = input_bias + state_bias, np.zeros_like(state_bias)
    return np.ascontiguousarray(first), np.ascontiguousarray(second), input_bias, state_bias


def _first_state(value: Value | None, direction_index: int, rows: int, size: int, batch_first: bool) -> Any:
    if value is None:
        return None
    plain = value.plain()
    return tf.convert_to_tensor(plain[:, direction_index] if batch_first else plain[direction_index])


def _one_direction(
    source: Any, weights: Any, first_states: list[Any], step: CellStep, backwards: bool
) -> tuple[list[Any], list[Any]]:
    first, second, input_bias, state_bias = weights
    steps, rows, width = (int(size) for size in source.shape)
    input_parts = tf.nn.bias_add(tf.matmul(tf.reshape(source, (steps * rows, width)), first), input_bias)
    states = [tf.zeros((rows, second.shape[0])) if state is None else state for state in first_states]
    answers: list[Any] = [None] * steps
    for step_index in reversed(range(steps)) if backwards else range(steps):
        states = step(input_parts[step_index * rows : (step_index + 1) * rows], second, state_bias, states)
        answers[step_index] = states[0]
    return answers, states
