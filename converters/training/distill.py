"""Gradient steps towards the answers and layer outputs of the original model, and towards labels where there are some.

The step of each tensor is relative to the tensor's own root mean square: where inputs reach 255, or where batch
normalization was folded in, weights are tiny, and one absolute step would destroy them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

from converters.graph.graph import Graph
from converters.training.module import TrainableGraph
from converters.training.schedule import Lesson, Schedule, rate_at
from edgekit.tensors import Array

LAYER_WEIGHT = 30.0  # of the layers' mean squared error, beside the divergence of the answers
LABEL_WEIGHT = 0.5  # of the cross-entropy with labels
FIRST, SECOND, EPSILON = 0.9, 0.99, 1e-8  # Adam's decay rates and its guard (Kingma and Ba 2015)
TINY = 1e-7
SPREAD_ROWS = 256  # rows that show how far a tensor's values spread
LEAST_SCALE = 1e-3  # of a tensor that is 0 everywhere


def distill(model: bytes, lesson: Lesson, schedule: Schedule) -> dict[str, Array]:
    """Train the serialized graph `model`; its new weights and biases by the name of their constant.

    Raises:
        UnsupportedOpError: An operator has no TensorFlow form.
    """
    tf.config.experimental.enable_op_determinism()  # so that a seed gives the same bytes
    module = TrainableGraph(Graph(onnx.load_model_from_string(model)))
    _Training(module, lesson, schedule).run()
    return module.trained()


class _Training:
    def __init__(self, module: TrainableGraph, lesson: Lesson, schedule: Schedule) -> None:
        self._module, self._lesson, self._schedule = module, lesson, schedule
        self._variables = list(module.trainable_variables)
        self._scales = [_scale(variable.numpy()) for variable in self._variables]
        self._moments = [[tf.Variable(tf.zeros_like(v)) for v in self._variables] for _ in range(2)]
        self._spreads = {name: _spread(value) for name, value in {**lesson.layers, **lesson.answers}.items()}

    def run(self) -> None:
        """Take all steps."""
        lesson, schedule = self._lesson, self._schedule
        step = tf.function(self._step, autograph=False)
        arrays = {"inputs": lesson.inputs, "answers": lesson.answers, "layers": lesson.layers}
        count = len(next(iter(lesson.inputs.values())))
        batches = _batches(count, min(schedule.rows, count), schedule.seed)
        for number, rows in zip(range(schedule.steps), batches, strict=False):
            parts = {
                part: {name: tf.constant(value[rows]) for name, value in of.items()} for part, of in arrays.items()
            }
            labels = None if lesson.labels is None else tf.constant(lesson.labels[rows])
            factors = [rate_at(number, schedule), 1 - FIRST ** (number + 1), 1 - SECOND ** (number + 1)]
            step(parts, labels, *(tf.constant(one, tf.float32) for one in factors))

    def _step(self, parts: dict[str, dict[str, Any]], labels: Any, rate: Any, first: Any, second: Any) -> None:
        names = list({**parts["layers"], **parts["answers"]})
        with tf.GradientTape() as tape:
            values = self._module.tensors(parts["inputs"], names)
            loss = self._loss(values, parts, labels)
        gradients = tape.gradient(loss, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        for variable, gradient, scale, mean, square in zip(
            self._variables, gradients, self._scales, *self._moments, strict=True
        ):
            mean.assign(FIRST * mean + (1 - FIRST) * gradient)
            square.assign(SECOND * square + (1 - SECOND) * tf.square(gradient))
            change = (mean / first) / (tf.sqrt(square / second) + EPSILON)
            variable.assign_sub(rate * scale * change)

    def _loss(self, values: dict[str, Any], parts: dict[str, dict[str, Any]], labels: Any) -> Any:
        lesson, total = self._lesson, tf.constant(0.0)
        for name, expected in parts["answers"].items():
            if name == lesson.decision:
                before, after = (_log_probabilities(one, logits=lesson.logits) for one in (expected, values[name]))
                total += tf.reduce_mean(tf.reduce_sum(tf.exp(before) * (before - after), axis=-1))
                if labels is not None:
                    wanted = tf.one_hot(labels, int(after.shape[-1]), dtype=after.dtype)
                    total -= LABEL_WEIGHT * tf.reduce_mean(tf.reduce_sum(wanted * after, axis=-1))
            else:
                total += tf.reduce_mean(tf.square(values[name] - expected)) / self._spreads[name]
        errors = [
            tf.reduce_mean(tf.square(tf.reshape(values[name], tf.shape(expected)) - expected)) / self._spreads[name]
            for name, expected in parts["layers"].items()
        ]
        return total + LAYER_WEIGHT * tf.add_n(errors) / len(errors) if errors else total


def _batches(count: int, size: int, seed: int) -> Iterator[Array]:
    """Rows of one batch after another; every row comes once before any comes again."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:size]
        order = order[size:]


def _scale(value: Array) -> float:
    return float(np.sqrt(np.mean(np.square(value.astype(np.float64))))) or LEAST_SCALE


def _spread(value: Array) -> float:
    some = value[:: max(1, len(value) // SPREAD_ROWS)]
    return max(float(np.var(some, dtype=np.float64)), TINY)


def _log_probabilities(scores: Any, *, logits: bool) -> Any:
    if logits:
        return tf.nn.log_softmax(scores)
    safe = tf.maximum(scores, TINY)
    return tf.math.log(safe / tf.reduce_sum(safe, axis=-1, keepdims=True))
