"""What values each tensor takes, measured in one pass and mergeable: data can be read in parts, or in parallel."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import msgspec
import numpy as np
import onnx
from onnx import helper

from converters.calibration.histogram import BINS, Histogram
from converters.calibration.range_rules import read_range
from converters.data.samples import Samples
from converters.graph.graph import Graph
from edgekit.errors import CalibrationError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

CHUNK_ROWS = 16
FORMAT = 1
MOST_BYTES = 64 * 1024 * 1024


class Calibration(msgspec.Struct, frozen=True):
    """Histograms of every floating-point tensor of a graph, by name, over `rows` samples."""

    rows: int
    tensors: dict[str, Histogram]

    def merged(self, other: Calibration) -> Calibration:
        """The calibration of both sets of samples."""
        tensors = {name: found.merged(other.tensors[name]) for name, found in self.tensors.items()}
        return Calibration(self.rows + other.rows, tensors)

    def ranges(self, rule: str = "minmax") -> dict[str, tuple[float, float]]:
        """Smallest and largest value that a grid should hold, by tensor name; `rule` as `read_range`."""
        return {name: read_range(found, rule) for name, found in self.tensors.items()}

    def coarser(self, steps: int) -> Calibration:
        """The same in bins 2 ** `steps` times as wide: smaller to keep, and still exact in its extremes."""
        return Calibration(self.rows, {name: found.coarser(steps) for name, found in self.tensors.items()})

    def to_bytes(self) -> bytes:
        """For a cache or a bundle: a few hundred bytes a tensor."""
        tensors = {
            name: (found.minimum, found.maximum, found.exponent, found.zeros, *_trimmed(found.counts))
            for name, found in self.tensors.items()
        }
        return zlib.compress(msgspec.msgpack.encode((FORMAT, self.rows, tensors)), 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """What `to_bytes` wrote.

        Raises:
            CalibrationError: it is something else, or damaged.
        """
        try:
            form, rows, tensors = _decoder.decode(_inflated(data))
            if form != FORMAT:
                raise CalibrationError(f"the calibration's format is {form}, expected {FORMAT}")
            return cls(rows, {name: _restored(*values) for name, values in tensors.items()})
        except (zlib.error, msgspec.MsgspecError, ValueError) as error:
            raise CalibrationError(f"the calibration cannot be read: {error}") from error


Saved = tuple[float, float, int, int, int, list[int]]
_decoder = msgspec.msgpack.Decoder(tuple[int, int, dict[str, Saved]])


def _trimmed(counts: Array) -> tuple[int, list[int]]:
    """The first bin that is not empty, and the counts from there to the last one."""
    used = np.flatnonzero(counts)
    return int(used[0]), [int(count) for count in counts[used[0] : used[-1] + 1]]


def _restored(low: float, high: float, exponent: int, zeros: int, first: int, found: list[int]) -> Histogram:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high and -1100 < exponent < 1100):
        raise ValueError(f"a range is {low} to {high} with exponent {exponent}")
    if first < 0 or first + len(found) > BINS or min(found, default=-1) < 0 or not 0 <= zeros <= sum(found):
        raise ValueError(f"{len(found)} counts from bin {first} on do not fit {BINS} bins")
    counts = np.zeros(BINS, dtype=np.int64)
    counts[first : first + len(found)] = found
    return Histogram(low, high, exponent, counts, zeros)


def _inflated(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    found = inflate.decompress(data, MOST_BYTES)
    if inflate.unconsumed_tail or not inflate.eof:
        raise ValueError(f"it is cut short, or unpacks to more than {MOST_BYTES} bytes")
    return found


def calibrate(graph: Graph, samples: Samples) -> Calibration:
    """Run `samples` (at least one row) through `graph` and measure each tensor.

    Raises:
        CalibrationError: a tensor takes infinite or undefined values; names it.
    """
    found: Calibration | None = None
    for part in tensor_values(graph, samples):
        rows = len(next(iter(part.values())))
        now = Calibration(rows, {name: histogram_of(name, value) for name, value in part.items()})
        found = now if found is None else found.merged(now)
    if found is None:
        raise CalibrationError("there are no samples to calibrate with")
    return found


def tensor_values(graph: Graph, samples: Samples) -> Iterator[dict[str, Array]]:
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


def histogram_of(name: str, values: Array) -> Histogram:
    """The histogram of tensor `name`.

    Raises:
        CalibrationError: a value is infinite or undefined.
    """
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"tensor {name} takes infinite or undefined values on the calibration samples",
            advice="Check the samples' scale: the model may expect another range.",
        )
    return Histogram.of(values)
