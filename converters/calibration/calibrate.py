"""Measures histograms of each tensor's values in one pass. They can be merged, so data can be read in parts."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import msgspec
import numpy as np
import onnx
from onnx import helper

from converters.calibration.range_rules import read_range
from converters.data.samples import Samples
from converters.graph.graph import Graph
from edgekit.errors import CalibrationError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.sketches.histogram import BINS, Histogram
from edgekit.tensors import Array

CALIBRATION_CHUNK_ROWS = 16
CALIBRATION_FORMAT = 1
MAX_CALIBRATION_BYTES = 64 * 1024 * 1024


class Calibration(msgspec.Struct, frozen=True):
    """Histograms of every floating-point tensor of a graph, by name, over `rows` samples."""

    rows: int
    tensors: dict[str, Histogram]

    def merged(self, other: Calibration) -> Calibration:
        """The calibration of both sets of samples."""
        tensors = {name: histogram.merged(other.tensors[name]) for name, histogram in self.tensors.items()}
        return Calibration(self.rows + other.rows, tensors)

    def ranges(self, rule: str = "minmax") -> dict[str, tuple[float, float]]:
        """Smallest and largest value of the quantization grid, by tensor name; `rule` as in `read_range`."""
        return {name: read_range(histogram, rule) for name, histogram in self.tensors.items()}

    def coarser(self, steps: int) -> Calibration:
        """The same calibration with bins 2 ** `steps` times as wide: smaller to store, with the same extremes."""
        return Calibration(self.rows, {name: histogram.coarser(steps) for name, histogram in self.tensors.items()})

    def to_bytes(self) -> bytes:
        """Serialize for a cache or a bundle: a few hundred bytes per tensor."""
        tensors = {
            name: (one.minimum, one.maximum, one.exponent, one.zeros, *_trimmed(one.counts))
            for name, one in self.tensors.items()
        }
        return zlib.compress(msgspec.msgpack.encode((CALIBRATION_FORMAT, self.rows, tensors)), 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """The calibration that `to_bytes` wrote.

        Raises:
            CalibrationError: `data` is damaged, or is not a calibration.
        """
        try:
            version, rows, tensors = _decoder.decode(_inflated(data))
            if version != CALIBRATION_FORMAT:
                raise CalibrationError(f"the calibration's format is {version}, expected {CALIBRATION_FORMAT}")
            return cls(rows, {name: _restored(*values) for name, values in tensors.items()})
        except (zlib.error, msgspec.MsgspecError, ValueError) as error:
            raise CalibrationError(f"the calibration cannot be read: {error}") from error


Saved = tuple[float, float, int, int, int, list[int]]
_decoder = msgspec.msgpack.Decoder(tuple[int, int, dict[str, Saved]])


def _trimmed(counts: Array) -> tuple[int, list[int]]:
    """The index of the first bin that is not empty, and the counts from there to the last such bin."""
    used = np.flatnonzero(counts)
    return int(used[0]), [int(count) for count in counts[used[0] : used[-1] + 1]]


def _restored(low: float, high: float, exponent: int, zeros: int, first: int, used: list[int]) -> Histogram:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high and -1100 < exponent < 1100):
        raise ValueError(f"a range is {low} to {high} with exponent {exponent}")
    if first < 0 or first + len(used) > BINS or min(used, default=-1) < 0 or not 0 <= zeros <= sum(used):
        raise ValueError(f"{len(used)} counts from bin {first} on do not fit {BINS} bins")
    counts = np.zeros(BINS, dtype=np.int64)
    counts[first : first + len(used)] = used
    return Histogram(low, high, exponent, counts, zeros)


def _inflated(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    inflated = inflate.decompress(data, MAX_CALIBRATION_BYTES)
    if inflate.unconsumed_tail or not inflate.eof:
        raise ValueError(f"the data is incomplete, or unpacks to more than {MAX_CALIBRATION_BYTES} bytes")
    return inflated


def calibrate(graph: Graph, samples: Samples) -> Calibration:
    """Run `samples` (at least one row) through `graph` and measure each tensor.

    Raises:
        CalibrationError: a tensor has undefined values; the message names it.
    """
    total: Calibration | None = None
    for part in tensor_values(graph, samples):
        rows = len(next(iter(part.values())))
        chunk = Calibration(rows, {name: histogram_of(name, value) for name, value in part.items()})
        total = chunk if total is None else total.merged(chunk)
    if total is None:
        raise CalibrationError("there are no samples to calibrate with")
    return total


def tensor_values(graph: Graph, samples: Samples) -> Iterator[dict[str, Array]]:
    """The values of every floating-point tensor, inputs included, chunk by chunk.

    Of a model without ONNX form, only inputs and outputs are known.
    """
    if graph.opaque is not None:
        inputs = samples.inputs
        values = {**{spec.name: inputs[spec.name] for spec in graph.inputs}, **graph.run(inputs)}
        for row in range(len(samples)):
            yield {name: value[row : row + 1] for name, value in values.items() if value.dtype.kind == "f"}
        return
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    outputs = {value.name for value in model.graph.output}
    for node in graph.nodes:  # a node of the copy would keep its weights in memory
        if node.op_type != "Constant":
            model.graph.output.extend(
                helper.make_empty_tensor_value_info(name) for name in node.output if name and name not in outputs
            )
    runtime = OnnxRuntime(model.SerializeToString(), threads=1)
    # In order of execution, so that a fault is reported at the tensor where it begins.
    order = [*(spec.name for spec in graph.inputs), *(name for node in graph.nodes for name in node.output)]
    del model
    rows = graph.rows_at_once(CALIBRATION_CHUNK_ROWS, order)
    try:
        for start in range(0, len(samples), rows):
            inputs = samples.take(slice(start, start + rows)).inputs
            values = {**inputs, **runtime.run(inputs)}
            known = [(name, values[name]) for name in order if name in values]
            yield {name: value for name, value in known if value.dtype.kind == "f" and value.size}
    finally:
        runtime.close()


def histogram_of(name: str, values: Array) -> Histogram:
    """The histogram of tensor `name`, without its infinite values: a mask before ArgMax or Softmax has them.

    Raises:
        CalibrationError: a value is undefined.
    """
    if np.isnan(values).any():
        raise CalibrationError(
            f"tensor {name} has undefined values (NaN) on the calibration samples",
            advice="Check the scale of the samples: the model may expect another range.",
        )
    finite = values[np.isfinite(values)]
    return Histogram.of(finite if finite.size else np.zeros(1))
