"""What values each tensor takes, measured in one pass and mergeable: data can be read in parts, or in parallel."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import onnx
from onnx import helper

from converters.graph import Graph
from converters.samples import Samples
from edgekit.errors import CalibrationError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

BINS = 256
CHUNK_ROWS = 16


class Histogram(msgspec.Struct, frozen=True):
    """Counts of one tensor's values in BINS bins around zero.

    The bin width is a power of two, so two histograms always have a common grid and merge without loss of exactness:
    the finer one's bins are joined in pairs until the widths agree.

    Attributes:
        minimum, maximum: The exact extremes.
        exponent: The bin width is 2 ** exponent; bin i covers (i - BINS / 2) to (i + 1 - BINS / 2) widths.
        counts: Values per bin, (BINS,) int64.
    """

    minimum: float
    maximum: float
    exponent: int
    counts: Array

    @classmethod
    def of(cls, values: Array) -> Histogram:
        """The histogram of every element of `values`, which must be finite and at least one."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        reach = max(abs(float(flat.min())), abs(float(flat.max())), 2.0**-100)
        exponent = int(np.floor(np.log2(reach / (BINS // 2)))) + 1
        index = np.floor(flat / 2.0**exponent).astype(np.int64) + BINS // 2
        return cls(float(flat.min()), float(flat.max()), exponent, np.bincount(index, minlength=BINS).astype(np.int64))

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values."""
        exponent = max(self.exponent, other.exponent)
        counts = self._counts_at(exponent) + other._counts_at(exponent)
        return Histogram(min(self.minimum, other.minimum), max(self.maximum, other.maximum), exponent, counts)

    def _counts_at(self, exponent: int) -> Array:
        counts = self.counts
        for _ in range(min(exponent - self.exponent, BINS.bit_length())):
            joined = counts.reshape(-1, 2).sum(axis=1)
            counts = np.zeros_like(counts)
            counts[BINS // 4 : BINS // 4 + BINS // 2] = joined
        return counts


class Calibration(msgspec.Struct, frozen=True):
    """Histograms of every floating-point tensor of a graph, by name, over `rows` samples."""

    rows: int
    tensors: dict[str, Histogram]

    def merged(self, other: Calibration) -> Calibration:
        """The calibration of both sets of samples."""
        tensors = {name: found.merged(other.tensors[name]) for name, found in self.tensors.items()}
        return Calibration(self.rows + other.rows, tensors)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value by tensor name."""
        return {name: (found.minimum, found.maximum) for name, found in self.tensors.items()}


def calibrate(graph: Graph, samples: Samples) -> Calibration:
    """Run `samples` (at least one row) through `graph` and measure each tensor.

    Raises:
        CalibrationError: a tensor takes infinite or undefined values; names it.
    """
    found: Calibration | None = None
    for part in _parts(graph, samples):
        rows = len(next(iter(part.values())))
        now = Calibration(rows, {name: _histogram(name, value) for name, value in part.items()})
        found = now if found is None else found.merged(now)
    if found is None:
        raise CalibrationError("there are no samples to calibrate with")
    return found


def _parts(graph: Graph, samples: Samples) -> Iterator[dict[str, Array]]:
    """Every floating-point tensor's values, inputs included, chunk by chunk."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    have = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "Constant":
            model.graph.output.extend(
                helper.make_empty_tensor_value_info(name) for name in node.output if name and name not in have
            )
    runtime = OnnxRuntime(model.SerializeToString(), threads=1)
    # In order of execution, so that a fault is found where it begins.
    order = [*(spec.name for spec in graph.inputs), *(name for node in graph.nodes for name in node.output)]
    rows = CHUNK_ROWS if graph.free_batch else 1
    try:
        for start in range(0, len(samples), rows):
            inputs = samples.take(slice(start, start + rows)).inputs
            values = {**inputs, **runtime.run(inputs)}
            known = [(name, values[name]) for name in order if name in values]
            yield {name: value for name, value in known if value.dtype.kind == "f" and value.size}
    finally:
        runtime.close()


def _histogram(name: str, values: Array) -> Histogram:
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"tensor {name} takes infinite or undefined values on the calibration samples",
            advice="Check the samples' scale: the model may expect another range.",
        )
    return Histogram.of(values)
