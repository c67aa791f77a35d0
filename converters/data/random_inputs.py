"""Random inputs that the model could really get, for parity where no data are given.

Where the graph shows no other range, floats are standard normal, cut at -3 and 3 (sounds: cut at -1 and 1), pixels are
0 to 255, 8-bit integers have the range of their type, and other integers are 0 to 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from converters.data.input_ranges import InputRange, input_ranges
from converters.data.samples import Samples
from converters.graph.graph import Graph
from edgekit.errors import ConversionError, DataError, EdgekitError, RuntimeLoadError
from edgekit.tensors import Array, TensorSpec

TRIAL_ROWS = 8
NEGATIVE_SHARE = 0.1  # of indices, where they may be negative
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+\.(h|cc)(:\d+)? ?")  # of ONNX Runtime's own messages
REAL_SAMPLES = "Give --data with real samples."

Answers = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class RandomInputs(msgspec.Struct, frozen=True):
    """Random samples and what the user should know of them.

    Attributes:
        samples: The samples.
        notes: One sentence each; empty where the model gives varied, finite answers for the first draw.
    """

    samples: Samples
    notes: tuple[str, ...] = ()


def plausible_samples(
    graph: Graph, answers: Answers, rows: int, seed: int, *, negative_indices: bool = False
) -> RandomInputs:
    """Draw inputs until the model gives finite answers that vary; what is not believed is told.

    Args:
        graph: The canonical graph.
        answers: Runs the model on inputs (N, ...).
        rows: Number of samples.
        seed: Seed of the first draw.
        negative_indices: As `input_ranges`.

    Raises:
        ConversionError: The model runs with none of the draws; the message has its first error.
    """
    ranges = input_ranges(graph, negative_indices=negative_indices)
    faults: list[str] = []
    advice = ""
    usable: Samples | None = None
    for number, (name, one) in enumerate(_draws(ranges)):
        samples = _as_clients_send(graph, draw(graph.inputs, one, rows, seed + 1000 * number))
        try:
            fault = _fault_of(answers(samples.take(slice(0, TRIAL_ROWS)).inputs))
        except (ConversionError, DataError, RuntimeLoadError) as error:
            faults.append(f"with {name}: {_first_line(error)}")
            advice = advice or error.advice
            continue
        if not fault:
            told = (f"random inputs: {faults[0]}; {name} are used instead. {REAL_SAMPLES}" for _ in faults[:1])
            return RandomInputs(samples, tuple(told))
        faults.append(f"with {name}, {fault}")
        usable = samples if usable is None else usable
    if usable is None:
        raise ConversionError(
            f"the model cannot run on random inputs, {'; '.join(faults[:2])}",
            advice=f"{advice or REAL_SAMPLES} `edgekit inspect` shows the model's inputs.",
        )
    note = f"random inputs prove little for this model: {'; '.join(faults[:2])}. {REAL_SAMPLES}"
    return RandomInputs(usable, (note,))


def random_samples(graph: Graph, rows: int, seed: int) -> Samples:
    """Seeded samples in the ranges that `graph` shows, without a trial of the model. For parity only."""
    return draw(graph.inputs, input_ranges(graph), rows, seed)


def draw(specs: Sequence[TensorSpec], ranges: Mapping[str, InputRange], rows: int, seed: int) -> Samples:
    """Seeded samples in `ranges`; masks and lengths of one row are consistent.

    Args:
        specs: Inputs with the sample axis first.
        ranges: The range of each input, by its name.
        rows: Number of samples.
        seed: The seed.
    """
    rng = np.random.default_rng(seed)
    shapes = {spec.name: tuple(size or 1 for size in spec.shape[1:]) for spec in specs}
    longest = _longest(specs, ranges, shapes)
    lengths = rng.integers(max(1, longest // 4), longest + 1, rows)
    lengths[0] = longest
    inputs = {}
    for spec in specs:
        value = _values(ranges[spec.name], (rows, *shapes[spec.name]), lengths, rng)
        inputs[spec.name] = _as_dtype(value, spec)
    return Samples(inputs)


def _longest(
    specs: Sequence[TensorSpec], ranges: Mapping[str, InputRange], shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Length of the sequences: the last axis of a mask, else the first axis of a sequence."""
    masks = [shapes[spec.name][-1] for spec in specs if ranges[spec.name].kind == "mask" and shapes[spec.name]]
    others = [shapes[spec.name][0] for spec in specs if shapes[spec.name] and ranges[spec.name].kind != "length"]
    return min(masks or others[:1] or [1])


def _values(one: InputRange, shape: tuple[int, ...], lengths: Array, rng: np.random.Generator) -> Array:
    if one.kind == "normal":
        spread = one.high / 3.0
        return np.clip(rng.standard_normal(shape) * spread, one.low, one.high)
    if one.kind == "uniform":
        return rng.uniform(one.low, one.high, shape)
    if one.kind == "flag":
        return rng.integers(0, 2, shape)
    if one.kind == "choice":
        return rng.choice(np.array(one.values), shape)
    if one.kind == "mask":
        ones = np.arange(shape[-1] if len(shape) > 1 else 1) < lengths[:, None]
        return np.broadcast_to(
            ones.reshape(shape[0], *[1] * (len(shape) - 2), *ones.shape[1:][: len(shape) - 1]), shape
        )
    if one.kind == "length":
        return np.broadcast_to(lengths.reshape(-1, *[1] * (len(shape) - 1)), shape)
    if one.kind == "position":
        return np.broadcast_to(np.minimum(np.arange(shape[-1] if len(shape) > 1 else 1), one.high), shape)
    return _whole(one, shape, rng)


def _whole(one: InputRange, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    low = max(one.low, 0.0)
    values = rng.integers(int(low), int(max(one.high, low)) + 1, shape)
    if one.low < 0:
        share = NEGATIVE_SHARE if one.selects else -one.low / (one.high - one.low)
        values = np.where(rng.random(shape) < share, rng.integers(int(one.low), 0, shape), values)
    return values


def _as_dtype(value: Array, spec: TensorSpec) -> Array:
    dtype = spec.dtype.numpy
    if dtype.kind in "iu":
        value = np.rint(value)
    return np.ascontiguousarray(value.astype(dtype))


def _as_clients_send(graph: Graph, samples: Samples) -> Samples:
    """The samples, rounded where clients send another float type than the graph takes."""
    types = {spec.name: spec.dtype.numpy for spec in graph.logical_inputs if spec.dtype.numpy.kind == "f"}
    rounded = {
        name: value.astype(types[name]).astype(value.dtype) if value.dtype.kind == "f" and name in types else value
        for name, value in samples.inputs.items()
    }
    return Samples(rounded)


def _draws(ranges: Mapping[str, InputRange]) -> list[tuple[str, dict[str, InputRange]]]:
    """The ways of drawing inputs, in the order of trial, by their names in messages."""
    first = dict(ranges)
    others = [
        ("inputs from 0 to 1", _floats(ranges, InputRange("uniform", 0.0, 1.0))),
        ("inputs from 0 to 255", _floats(ranges, InputRange("uniform", 0.0, 255.0))),
        ("small inputs", _floats(ranges, InputRange("normal", -0.3, 0.3))),
        ("indices from 0", _integers(ranges, lambda one: (max(0.0, one.low), one.high))),
        ("integers from 1", _integers(ranges, lambda one: (max(1.0, one.low), max(1.0, one.high)))),
        ("integers 0 and 1", _integers(ranges, lambda one: (0.0, min(one.high, 1.0)))),
    ]
    draws = [("plausible inputs", first), ("a second draw", first)]
    for name, one in others:
        if all(one != known for _, known in draws):
            draws.append((name, one))
    return draws


def _floats(ranges: Mapping[str, InputRange], changed: InputRange) -> dict[str, InputRange]:
    return {name: changed if one.kind in ("normal", "uniform") else one for name, one in ranges.items()}


def _integers(
    ranges: Mapping[str, InputRange], ends: Callable[[InputRange], tuple[float, float]]
) -> dict[str, InputRange]:
    return {
        name: InputRange("whole", *ends(one), selects=one.selects) if one.kind == "whole" else one
        for name, one in ranges.items()
    }


def _fault_of(answers: Mapping[str, Array]) -> str:
    """Why these answers say nothing about the model; empty where they do."""
    for name, value in answers.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"output {name} holds NaN or infinity"
    if all(len(value) > 1 and (value == value[:1]).all() for value in answers.values()):
        names = ", ".join(answers)
        return f"{names} {'is' if len(answers) == 1 else 'are'} the same for every input"
    return ""


def _first_line(error: EdgekitError) -> str:
    return _CODE.sub("", str(error).splitlines()[0])[:300]
