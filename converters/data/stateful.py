"""Samples of a model with state: they hold the float model's states, and every model is judged with its own.

The states of the float model make each row complete, so calibration and the checks of single passes need no order.
Candidates, golden samples and tests roll their own state instead, so an error that grows over a stream is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from converters.data.samples import Samples
from converters.data.streams import LEAST_STREAMS, Run, roll
from edgekit.tensors import Array, DType, TensorSpec

RANDOM_STEPS = 8  # rows of one stream of random samples


def with_states(samples: Samples, run: Run, specs: Sequence[TensorSpec], feeds: Mapping[str, str]) -> Samples:
    """The samples with the state before each row, as the model `run` has it.

    Args:
        samples: Rows with their streams; where they have none, each RANDOM_STEPS rows are one.
        run: Runs the model on samples: inputs (N, ...) to outputs (N, ...).
        specs: The model's inputs, with a free first axis.
        feeds: The output that feeds a state input, by the input's name; empty for a model without state.
    """
    if not feeds:
        return samples
    data = {name: value for name, value in samples.inputs.items() if name not in feeds}
    streams = np.arange(len(samples)) // RANDOM_STEPS if samples.stream is None else samples.stream
    _, found = roll(run, feeds, [spec for spec in specs if spec.name in feeds], data, streams)
    return msgspec.structs.replace(samples, inputs={**data, **found}, stream=streams, feeds=dict(feeds))


def answers_to(run: Run, samples: Samples) -> dict[str, Array]:
    """The answers of a model to samples, without state; a model with state runs each stream from the zero state."""
    if not samples.feeds or samples.stream is None:
        return dict(run(samples.inputs))
    data = data_inputs(samples)
    given = {name: samples.inputs[name] for name in samples.feeds}
    zero = [TensorSpec(name, DType.of(value.dtype), (None, *value.shape[1:])) for name, value in given.items()]
    outputs, _ = roll(run, samples.feeds, zero, data, samples.stream)
    return visible(samples, outputs)


def data_inputs(samples: Samples) -> dict[str, Array]:
    """The inputs that are data: all but state."""
    return {name: value for name, value in samples.inputs.items() if name not in samples.feeds}


def visible(samples: Samples, answers: Mapping[str, Array]) -> dict[str, Array]:
    """The answers without state."""
    hidden = set(samples.feeds.values())
    return {name: value for name, value in answers.items() if name not in hidden}


def stream_note(proof: Samples) -> str:
    """Notes for the user on the proof split of a model with state; empty for other models."""
    if not proof.feeds or proof.stream is None:
        return ""
    count = len(np.unique(proof.stream))
    note = f"the model has state: a stream is one sample, and the proof has {count}, in {len(proof)} rows"
    if count < LEAST_STREAMS:
        return f"{note}; so few streams were cut in three parts each, and can hardly prove a quantized model"
    return note


def first_stream(samples: Samples, rows: int) -> Array:
    """Up to `rows` rows from the beginning of the longest stream."""
    assert samples.stream is not None
    longest = int(np.bincount(samples.stream).argmax())
    return np.flatnonzero(samples.stream == longest)[:rows]
