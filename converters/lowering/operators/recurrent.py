"""Recurrent layers: one dense layer computes the input's part of all steps, and one per step the state's.

The steps are unrolled, which delegates can run and static int8 needs; or with the option `loops` they stay one loop,
whose file is small for any number of steps. LiteRT's own LSTM operator cannot be quantized by litert-quantizer and is
not supported by delegates. LiteRT has no GRU operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, of

MAX_UNROLLED_STEPS = 512
MAX_UNROLLED_BYTES = 128 << 20  # of all steps' float weights: runtimes pack them for each step anew
MOST_JOINED = 5  # the most inputs of a concatenation in XNNPACK
# One step: (input part, states) to the new states; the first is the step's output.
CellStep = Callable[[Any, list[Any]], list[Any]]
# The step of a cell with its recurrent weights (size, gates * size) and their bias. It makes the constants, so that an
# unrolled layer has each of them once, and a loop has them in its body, where the quantizer looks for weights.
Cell = Callable[[Any, Any], CellStep]


@lowers("LSTM")
def lstm(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """LSTM with the default activations, in one direction or both."""
    if optional(inputs, 7) is not None or attrs.get("input_forget"):
        raise CannotLowerError("peepholes, or input_forget")
    _require(attrs, ("Sigmoid", "Tanh", "Tanh"))

    def cell(weights: Any, bias: Any) -> CellStep:
        size, weights, bias = weights.shape[0], tf.constant(weights), tf.constant(bias)

        def step(input_part: Any, states: list[Any]) -> list[Any]:
            hidden, memory = states
            gates = input_part + tf.matmul(hidden, weights) + bias
            sigmoids, last = _parts(gates, 3 * size)
            enter, leave, keep = _parts(tf.sigmoid(sigmoids), size, 2 * size)
            memory = keep * memory + enter * tf.tanh(last)
            return [leave * tf.tanh(memory), memory]

        return step

    return _run(inputs, attrs, cell, gates=4, states=2, sums_bias=True)


@lowers("GRU")
def gru(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """GRU with the default activations, either `linear_before_reset`, in one direction or both."""
    _require(attrs, ("Sigmoid", "Tanh"))
    cell = _late_reset if attrs.get("linear_before_reset") else _early_reset
    return _run(inputs, attrs, cell, gates=3, states=1, sums_bias=False)


def _late_reset(weights: Any, bias: Any) -> CellStep:
    """A GRU whose reset gate acts on the product with the weights."""
    size, weights, bias = weights.shape[0], tf.constant(weights), tf.constant(bias)

    def step(input_part: Any, states: list[Any]) -> list[Any]:
        [hidden] = states
        input_gates, input_new = _parts(input_part, 2 * size)
        state_gates, state_new = _parts(tf.matmul(hidden, weights) + bias, 2 * size)
        update, reset = _parts(tf.sigmoid(input_gates + state_gates), size)
        new = tf.tanh(input_new + reset * state_new)
        return [new + update * (hidden - new)]

    return step


def _early_reset(weights: Any, bias: Any) -> CellStep:
    """A GRU whose reset gate acts on the state."""
    size = weights.shape[0]
    gate_weights, new_weights = tf.constant(weights[:, : 2 * size]), tf.constant(weights[:, 2 * size :])
    gate_bias, new_bias = tf.constant(bias[: 2 * size]), tf.constant(bias[2 * size :])

    def step(input_part: Any, states: list[Any]) -> list[Any]:
        [hidden] = states
        input_gates, input_new = _parts(input_part, 2 * size)
        state_gates = tf.matmul(hidden, gate_weights) + gate_bias
        update, reset = _parts(tf.sigmoid(input_gates + state_gates), size)
        new = tf.tanh(input_new + tf.matmul(reset * hidden, new_weights) + new_bias)
        return [new + update * (hidden - new)]

    return step


@lowers("RNN")
def rnn(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """RNN with tanh, in one direction or both."""
    _require(attrs, ("Tanh",))

    def cell(weights: Any, bias: Any) -> CellStep:
        weights, bias = tf.constant(weights), tf.constant(bias)
        return lambda input_part, states: [tf.tanh(input_part + tf.matmul(states[0], weights) + bias)]

    return _run(inputs, attrs, cell, gates=1, states=1, sums_bias=True)


def _parts(tensor: Any, *columns: int) -> list[Any]:
    """The tensor cut before each of `columns`, by slices: delegates and quantizers do not take every split."""
    starts, ends = (0, *columns), (*columns, int(tensor.shape[1]))
    return [tensor[:, start:end] for start, end in zip(starts, ends, strict=True)]


def _require(attrs: dict[str, Any], expected: tuple[str, ...]) -> None:
    names = [name.decode() if isinstance(name, bytes) else name for name in attrs.get("activations") or ()]
    if any(name.lower() != expected[index % len(expected)].lower() for index, name in enumerate(names)):
        raise CannotLowerError(f"the activations {', '.join(names)}, expected {', '.join(expected)}")
    if attrs.get("clip"):
        raise CannotLowerError("clip")


def _run(
    inputs: Inputs, attrs: dict[str, Any], cell: Cell, *, gates: int, states: int, sums_bias: bool
) -> tuple[Value, ...]:
    """Run all steps of each direction, and return the outputs in ONNX's layout."""
    batch_first = bool(attrs.get("layout"))
    source = required(inputs[0]).plain()
    if batch_first:
        source = tf.transpose(source, (1, 0, 2))
    steps, rows, _ = (int(size) for size in source.shape)
    within = _within(optional(inputs, 4), steps)
    loops = bool(attrs["loops"])
    if not loops:
        _require_few_steps(steps, constant(inputs[2], "recurrent weights"))
    direction = attrs.get("direction", "forward")
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    answers, last = [], []
    for direction_index, backwards in enumerate(directions):
        first, second, input_bias, state_bias = _weights(inputs, direction_index, gates, sums_bias)
        first = attrs["variable"](first)
        begin = [
            _first_state(optional(inputs, 5 + state_index), direction_index, rows, second.shape[0], batch_first)
            for state_index in range(states)
        ]
        input_parts = tf.nn.bias_add(tf.matmul(tf.reshape(source, (steps * rows, -1)), first), input_bias)
        if loops:
            by_step = tf.reshape(input_parts, (steps, rows, first.shape[1]))
            make_step = functools.partial(cell, second, state_bias)
            outputs, final = _loop(by_step, begin, make_step, backwards, within, keep=attrs["used"][0])
        else:
            outputs, final = _unrolled(input_parts, begin, cell(second, state_bias), backwards, within)
        answers.append(outputs)
        last.append(final)
    sequence = _joined([tf.expand_dims(answer, 1) for answer in answers], 1) if loops else _stacked(answers, steps)
    finals = [_joined([_wide(final[state_index], 3) for final in last], 0) for state_index in range(states)]
    if batch_first:
        sequence = tf.transpose(sequence, (2, 0, 1, 3))
        finals = [tf.transpose(final, (1, 0, 2)) for final in finals]
    return (of(sequence), *map(of, finals))


def _require_few_steps(steps: int, weights: Any) -> None:
    """Check that a layer can be unrolled; `weights` are the recurrent ones of all directions."""
    if steps > MAX_UNROLLED_STEPS:
        raise CannotLowerError(f"{steps} steps (at most {MAX_UNROLLED_STEPS} are unrolled)")
    if steps * weights.nbytes > MAX_UNROLLED_BYTES:
        mib = steps * weights.nbytes / 2**20
        raise CannotLowerError(
            f"{steps} steps of {weights.nbytes} bytes of weights: unrolled, they would take {mib:.0f} MiB of memory on "
            f"the device (at most {MAX_UNROLLED_BYTES >> 20} MiB)"
        )


def _stacked(answers: list[list[Any]], steps: int) -> Any:
    """The outputs (steps, directions, rows, size) of each direction's outputs by step."""
    return _joined([_joined([_wide(answer[index], 4) for answer in answers], 1) for index in range(steps)], 0)


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
        return tf.zeros((rows, size))
    plain = value.plain()
    return tf.convert_to_tensor(plain[:, direction_index] if batch_first else plain[direction_index])


def _within(lengths: Value | None, steps: int) -> Any:
    """(steps, rows, 1): 1 where a step is within the length of its sequence, else 0; None where all steps are."""
    if lengths is None or (lengths.constant and np.all(lengths.plain() == steps)):
        return None
    ends = tf.reshape(tf.cast(lengths.plain(), tf.int32), (1, -1))
    numbers = np.arange(steps, dtype=np.int32)[:, None]
    return tf.expand_dims(tf.cast(tf.less(numbers, ends), tf.float32), 2)


def _masked(step: CellStep, input_part: Any, states: list[Any], within: Any) -> tuple[Any, list[Any]]:
    """The step's output and the new states. Past the end of a sequence, the output is 0 and the states stay."""
    new = step(input_part, states)
    if within is None:
        return new[0], new
    kept = [within * one for one in new]
    return kept[0], [one + (1.0 - within) * before for one, before in zip(kept, states, strict=True)]


def _unrolled(
    input_parts: Any, states: list[Any], step: CellStep, backwards: bool, within: Any
) -> tuple[list[Any], list[Any]]:
    """The output of each step (rows, size) in a list, and the last states."""
    rows = int(states[0].shape[0])
    steps = int(input_parts.shape[0]) // rows
    answers: list[Any] = [None] * steps
    for step_index in reversed(range(steps)) if backwards else range(steps):
        here = None if within is None else within[step_index]
        part = input_parts[step_index * rows : (step_index + 1) * rows]
        answers[step_index], states = _masked(step, part, states, here)
    return answers, states


def _loop(
    by_step: Any, states: list[Any], make_step: Callable[[], CellStep], backwards: bool, within: Any, *, keep: bool
) -> tuple[Any, list[Any]]:
    """The outputs of all steps (steps, rows, size), zeros unless `keep`; and the last states."""
    steps = int(by_step.shape[0])
    rows, size = (int(size) for size in states[0].shape)

    def body(count: Any, states: list[Any], *outputs: Any) -> tuple[Any, ...]:
        index = steps - 1 - count if backwards else count
        here = None if within is None else tf.gather(within, index)
        answer, states = _masked(make_step(), tf.gather(by_step, index), states, here)
        return (count + 1, states, *(_shifted(one, answer[None], backwards) for one in outputs))

    written = [tf.zeros((steps, rows, size))] if keep else []
    _, last, *kept = tf.while_loop(
        lambda count, *_: count < steps, body, (tf.constant(0), states, *written), maximum_iterations=steps
    )
    return kept[0] if kept else tf.zeros((steps, rows, size)), list(last)


def _shifted(outputs: Any, answer: Any, backwards: bool) -> Any:
    """`outputs` (steps, rows, size) moved by one step, with `answer` (1, rows, size) in the free place.

    All shapes in the loop's body are then known. A TensorArray is written at a computed place, and LiteRT plans the
    memory of a graph anew after such a loop: weights that XNNPACK unpacks (float16, int8) and that are read after the
    loop then had other values in later runs, now and then.
    """
    if outputs.shape[0] == 1:
        return answer
    return tf.concat([answer, outputs[:-1]] if backwards else [outputs[1:], answer], 0)
