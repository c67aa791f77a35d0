"""Runs a source model, in its own layout, on samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from converters.graph.graph import Graph, joined, varying_size, whole
from converters.graph.interface import SourceInput
from edgekit.bundle.sample_rows import from_layout, to_layout
from edgekit.tensors import Array, TensorSpec

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def run_samples(graph: Graph, inputs: Mapping[str, Array], run: Run) -> dict[str, Array]:
    """The answers of a source to `inputs`, which have the samples first.

    Args:
        graph: The canonical graph of the source, with its interface.
        inputs: Samples (N, ...) of the graph's inputs.
        run: Runs the source once on inputs in its own layout; it gets fixed and unread inputs too.

    Returns:
        Answers (N, ...) by output.

    Raises:
        ConversionError: The size of an output depends on the values of the inputs.
    """
    interface, count = graph.interface, len(next(iter(inputs.values())))
    rows = graph.rows_at_once() if interface.by_rows else 1
    parts: list[dict[str, Array]] = []
    for start in range(0, count, rows):
        size = min(rows, count - start)
        feed = {one.spec.name: _layout(one, inputs, start, size) for one in interface.inputs}
        answers = run(feed)
        samples = {spec.name: _samples(spec, np.asarray(answers[spec.name])) for spec in interface.outputs}
        parts.append(dict(whole(samples, size)))
    return joined(parts)


def _samples(spec: TensorSpec, value: Array) -> Array:
    """An output as samples (N, ...). Raises ConversionError where it has another size than with the trial inputs."""
    expected = tuple(size for size in spec.shape if size is not None)
    found = tuple(size for axis, size in enumerate(value.shape) if axis != spec.batch_axis)
    if found != expected:
        raise varying_size(spec.name, found, expected)
    return from_layout(spec, value)


def _layout(one: SourceInput, inputs: Mapping[str, Array], start: int, size: int) -> Array:
    """Samples `start` to `start` + `size` of one input in the source's layout."""
    spec = one.spec
    if not one.in_graph:
        shape = [size if axis is None else axis for axis in spec.shape]
        return np.full(shape, one.value or 0).astype(spec.dtype.numpy)
    made = to_layout(spec, inputs[spec.name][start : start + size])
    return np.asarray(made, dtype=spec.dtype.numpy, order="C")
