"""The statistics of one sample: small numbers whose distribution shows drift. Pure: the same rule at both ends.

A statistic is rounded to six digits, so that the order of sums on another processor changes nothing that counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import CLASSIFICATION, row_scores
from edgekit.tensors import Array

INPUT, SCORE, CLASS = "input", "score", "class"
MAX_FEATURES = 16  # columns of a table that are statistics of their own
MAX_CHANNELS = 4
MAX_VALUES = 65_536  # of one sample; larger ones are read in part
LARGEST = 1e30  # also in place of NaN and infinity

Draw = Callable[[], float]
_MEASURE = re.compile(r"\.(mean|spread|minimum|maximum|roughness|element|zeros|(channel|feature)\.\d+)$")


def input_statistics(name: str, sample: Array, draw: Draw) -> dict[str, float]:
    """The statistics of one sample of an input, by names such as ``input.x.mean``; empty for bytes and empty tensors.

    Integers of 32 and 64 bits are taken for indices, such as tokens: one element by chance, and the share of zeros.
    Others: mean, spread (standard deviation), minimum, maximum; roughness (mean difference of neighbours) from two axes
    on; the mean of each of up to MAX_CHANNELS channels of an image, on the last or the first of three axes, or of up to
    MAX_FEATURES channels of a series (time, channels). A vector of up to MAX_FEATURES numbers: each of them.

    Args:
        name: Name of the input.
        sample: One sample, without the axis of samples.
        draw: Gives a random number from 0 to below 1.
    """
    if sample.dtype.kind not in "fiub" or not sample.size:
        return {}
    found: dict[str, Any] = {}
    if sample.ndim <= 1 and sample.size <= MAX_FEATURES:
        found = {f"feature.{i}": value for i, value in enumerate(sample.reshape(-1))}
    elif sample.dtype.kind in "iu" and sample.dtype.itemsize >= 4:
        flat = sample.reshape(-1)
        found = {"element": flat[int(draw() * flat.size)], "zeros": np.mean(flat == 0)}
    else:
        found = _dense(_channels_last(sample))
    return {f"{INPUT}.{name}.{measure}": _number(value) for measure, value in found.items()}


def answer_statistics(task: Task, outputs: Mapping[str, Array]) -> dict[str, float]:
    """The statistics of the model's answer to one sample: ``score``, and ``class`` where it decides for one.

    Args:
        task: Names the output with the scores.
        outputs: Outputs by logical name, (1, ...) each.
    """
    scores = row_scores(task, outputs)
    if scores is None:
        return {}
    found = {SCORE: _number(scores.min())}
    if task.kind == CLASSIFICATION and scores.size == 1:
        found[CLASS] = float(outputs[task.output].argmax())
    return found


def subject_of(statistic: str) -> str:
    """The subject of a statistic: ``input.x`` of ``input.x.mean``; ``score`` and ``class`` are their own subjects."""
    return _MEASURE.sub("", statistic) if statistic.startswith(f"{INPUT}.") else statistic


def _dense(sample: Array) -> dict[str, Any]:
    """Statistics of a sample whose channels, if any, are on its last axis."""
    part = _part(sample).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        found = {"mean": part.mean(), "spread": part.std(), "minimum": part.min(), "maximum": part.max()}
        if part.ndim >= 2:
            axis = 1 if part.ndim >= 3 else 0  # along the rows of an image, along the time of a series
            found["roughness"] = np.abs(np.diff(part, axis=axis)).mean() if part.shape[axis] > 1 else 0.0
        if _has_channels(part.shape):
            found |= {f"channel.{i}": part[..., i].mean() for i in range(part.shape[-1])}
    return found


def _has_channels(shape: tuple[int, ...]) -> bool:
    if len(shape) == 3:
        return 2 <= shape[-1] <= MAX_CHANNELS
    return len(shape) == 2 and 2 <= shape[-1] <= MAX_FEATURES and shape[-1] < shape[0]


def _channels_last(sample: Array) -> Array:
    if sample.ndim == 3 and sample.shape[-1] > MAX_CHANNELS >= sample.shape[0]:
        return np.moveaxis(sample, 0, -1)
    return sample


def _part(sample: Array) -> Array:
    """At most about MAX_VALUES values, evenly spread along the first axis; neighbours on the other axes stay."""
    return sample[:: -(-sample.size // MAX_VALUES)] if sample.ndim and sample.size > MAX_VALUES else sample


def _number(value: Any) -> float:
    number = float(value)
    return float(f"{number:.6g}") if abs(number) < LARGEST else LARGEST if not number < 0 else -LARGEST
