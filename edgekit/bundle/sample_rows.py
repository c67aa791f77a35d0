"""Samples with their axis first, as data files and golden answers have them, and the model's own layout.

The model's batch may be another axis, or it may have none; then each sample is a call of its own. Rules only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekit.tensors import Array, TensorSpec

Run = Callable[[dict[str, Array]], Mapping[str, Array]]


def joins_samples(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """True if a call may take several samples: every tensor has a batch."""
    return all(None in spec.shape for spec in (*inputs, *outputs))


def sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one sample: without the batch, or without a first axis of 1 where there is no batch."""
    sizes = tuple(size for size in spec.shape if size is not None)
    return sizes[1:] if sizes == spec.shape and sizes[:1] == (1,) else sizes


def to_layout(spec: TensorSpec, samples: Array) -> Array:
    """Samples (N, ...) in the layout and float type of `spec`; a tensor without a batch takes the first sample only."""
    axis, dtype = spec.batch_axis, spec.dtype.numpy
    if samples.dtype != dtype and samples.dtype.kind == dtype.kind == "f":
        samples = samples.astype(dtype)
    if axis is None:
        return samples[:1].reshape([size or 1 for size in spec.shape])
    return samples if axis == 0 else np.ascontiguousarray(np.moveaxis(samples, 0, axis))


def from_layout(spec: TensorSpec, value: Array) -> Array:
    """A tensor in the layout of `spec` as samples (N, ...); without a batch it is one sample."""
    axis = spec.batch_axis
    if axis is None:
        return np.asarray(value).reshape(1, *sample_shape(spec))
    return np.moveaxis(value, axis, 0) if axis else value


def run_bytes(
    run: Run, outputs: Sequence[str], samples: Mapping[str, Array], *, rows: int, most_bytes: int
) -> dict[str, Array]:
    """Run a model on samples that are bytes, which it decodes itself.

    Args:
        run: Runs the model once.
        outputs: Names of its outputs that are needed, each with its rows along the first axis.
        samples: Bytes of the samples (N,) by input; there is at least one.
        rows: Most samples of one call.
        most_bytes: Most bytes of one call; a larger sample is a call of its own.

    Returns:
        Answers (N, ...) by output.
    """
    sizes = [sum(map(len, row)) for row in zip(*samples.values(), strict=True)]
    parts, start = [], 0
    while start < len(sizes):
        end, size = start + 1, sizes[start]
        while end < len(sizes) and end - start < rows and size + sizes[end] <= most_bytes:
            size += sizes[end]
            end += 1
        answers = run({name: value[start:end] for name, value in samples.items()})
        parts.append({name: answers[name] for name in outputs})
        start = end
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def run_samples(
    run: Run,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    samples: Mapping[str, Array],
    *,
    rows: int | None = None,
) -> dict[str, Array]:
    """Run a model on samples.

    Args:
        run: Runs the model once, in its own layout.
        inputs, outputs: Its logical tensors.
        samples: Samples (N, ...) by input; an input that the model may be run without can be left out.
        rows: Most samples of one call; None for all at once.

    Returns:
        Answers (N, ...) by output.
    """
    given = [spec for spec in inputs if spec.name in samples]
    others = {name: value for name, value in samples.items() if name not in {spec.name for spec in given}}
    count = len(next(iter(samples.values())))
    step = (rows or max(count, 1)) if joins_samples(given, outputs) else 1
    parts: list[dict[str, Array]] = []
    for start in range(0, max(count, 1), step):
        chunk = slice(start, start + step)
        feed = {spec.name: to_layout(spec, samples[spec.name][chunk]) for spec in given}
        answers = run({**feed, **others})  # unknown names are the runtime's to refuse
        parts.append({spec.name: from_layout(spec, answers[spec.name]) for spec in outputs})
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
