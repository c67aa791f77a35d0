"""Remove dead channels, whose values are 0 for every reader: they cost time and contribute nothing.

`Channels` (groups.py) decides which channels can be removed. A channel is either *proven* dead, for every input from
the weights alone, or *measured* dead: exactly 0 on every row of the samples. It can be active on other inputs then.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from converters.data.samples import Samples
from converters.graph.graph import Graph, attributes, label
from converters.passes.channels.bounds import ChannelBounds
from converters.passes.channels.groups import Channels, Read, without
from converters.passes.channels.rules import channels_of
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

LEAST_ROWS = 59  # a channel active on 5 % of inputs is 0 on 59 random rows with a probability below 5 %


class RemoveDeadChannels:
    """Removes every channel that is proven 0 for every input, or that no node reads."""

    name = "remove-dead-channels"

    def applies(self, graph: Graph) -> bool:
        """True if at least one channel can be removed."""
        return bool(_proven(channels_of(graph)).any())

    def run(self, graph: Graph) -> Graph:
        """The smaller graph."""
        channels = channels_of(graph)
        dead = _proven(channels)
        while dead.any():  # then channels read only by removed ones have no reader
            channels = channels_of(without(channels, dead))
            dead = _proven(channels)
        return channels.graph

    def holds(self, graph: Graph) -> bool:
        """No channel is left to remove."""
        return not self.applies(graph)


class DeadChannels:
    """The removable channels that every reader reads as 0 on every row of `samples`.

    Args:
        graph: The canonical graph.
        samples: At least one row of the model's inputs (N, ...).
    """

    def __init__(self, graph: Graph, samples: Samples) -> None:
        self.rows = len(samples)
        self._channels = channels_of(graph)
        alive = {name: np.zeros(len(lanes.ids), dtype=bool) for name, lanes in self._channels.lanes.items()}
        idle = self._channels.idle(alive)
        for values in self._values(samples, self._watched(idle)):
            for name, nonzero in values.items():
                alive[name] |= nonzero.any(axis=0)
            if not self._channels.idle(alive).any():
                break
        self._removable = self._channels.removable(alive)

    @property
    def found(self) -> bool:
        """True if there is at least one."""
        return bool(self._removable.any())

    def without(self) -> Graph:
        """The graph without these channels, and without channels that only they read."""
        return RemoveDeadChannels().run(without(self._channels, self._removable))

    def active_rows(self, samples: Samples) -> int:
        """How many rows of `samples` have at least one of these channels not 0 at a reader."""
        watched, count = self._watched(self._removable), 0
        for values in self._values(samples, watched):
            rows = [values[read.tensor][:, read.used & self._removable[read.lanes.ids]].any(axis=1) for read in watched]
            count += int(np.any(rows, axis=0).sum())
        return count

    def _watched(self, channels: Array) -> list[Read]:
        """The reads that include any of `channels` (n,), bool."""
        return [read for read in self._channels.reads if channels[read.lanes.ids].any()]

    def _values(self, samples: Samples, watched: list[Read]) -> Iterator[dict[str, Array]]:
        """By tensor, True for each row and lane with a value that is not 0 (rows, L); one item per batch of rows."""
        axes = {read.tensor: read.lanes.axis for read in watched}
        if not axes:
            return
        graph = self._channels.graph
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        del model.graph.output[:]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in axes)
        runtime = OnnxRuntime(model.SerializeToString(), threads=1)
        del model
        sizes = self._channels.sizes
        rows = graph.rows_at_once(kept=axes) if all(sizes[name][0] == 1 for name in axes) else 1
        try:
            for start in range(0, len(samples), rows):
                part = samples.take(slice(start, start + rows))
                outputs = runtime.run(part.inputs)
                yield {name: _nonzero(outputs[name], axis, len(part)) for name, axis in axes.items()}
        finally:
            runtime.close()


def layer_channels(graph: Graph) -> dict[str, int]:
    """Output channels of each layer by its name; layers without constant weights are left out."""
    channels = {}
    for node in graph.nodes:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in graph.constants:
            shape, given = graph.constants[node.input[1]].shape, attributes(node)
            if node.op_type == "Conv" or given.get("transB"):
                channels[label(node)] = shape[0]
            else:
                channels[label(node)] = shape[1] * given.get("group", 1) if len(shape) > 1 else 1
    return channels


def _proven(channels: Channels) -> Array:
    return channels.removable(ChannelBounds(channels).alive())


def _nonzero(values: Array, axis: int, rows: int) -> Array:
    """True for each row and lane with a value that is not 0 (rows, L); alike for all rows where they are not first."""
    batch_first = axis > 0 and len(values) == rows > 1
    others = tuple(i for i in range(int(batch_first), values.ndim) if i != axis)
    nonzero: Array = (values != 0).any(axis=others)
    return nonzero if batch_first else np.broadcast_to(nonzero, (rows, len(nonzero)))
