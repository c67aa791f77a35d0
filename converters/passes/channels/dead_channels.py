"""Takes away channels that are 0 wherever they are read: they cost as much as others and add nothing.

Which can go is told by `Channels`. That they are 0 is either *proven*, for every input, from the weights alone, or
*measured*: exactly 0 on every row of given samples. What is measured need not hold of other inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from converters.data.samples import Samples
from converters.graph.graph import CHUNK_ROWS, Graph, attributes, label
from converters.passes.channels.bounds import ChannelBounds
from converters.passes.channels.groups import Channels, Read, without
from converters.passes.channels.rules import channels_of
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array

LEAST_ROWS = 59  # a channel that is awake on 5 % of inputs is 0 on as many rows with a chance below 5 %


class RemoveDeadChannels:
    """Takes away every channel that is 0 for every input, or that nobody reads."""

    name = "remove-dead-channels"

    def applies(self, graph: Graph) -> bool:
        """True where there is one that can go."""
        return bool(_proven(channels_of(graph)).any())

    def run(self, graph: Graph) -> Graph:
        """The smaller graph."""
        channels = channels_of(graph)
        gone = _proven(channels)
        while gone.any():  # what only dead channels read is read by nobody then
            channels = channels_of(without(channels, gone))
            gone = _proven(channels)
        return channels.graph

    def holds(self, graph: Graph) -> bool:
        """None is left."""
        return not self.applies(graph)


class DeadChannels:
    """The channels that were 0 on every row of `samples` wherever they are read, and can go.

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
            for name, awake in values.items():
                alive[name] |= awake.any(axis=0)
            if not self._channels.idle(alive).any():
                break
        self._gone = self._channels.removable(alive)

    @property
    def found(self) -> bool:
        """True where there is at least one."""
        return bool(self._gone.any())

    def without(self) -> Graph:
        """The graph without them, and without what only they read."""
        return RemoveDeadChannels().run(without(self._channels, self._gone))

    def waking_rows(self, samples: Samples) -> int:
        """On how many rows of `samples` one of them is not 0 where it is read."""
        watched, count = self._watched(self._gone), 0
        for values in self._values(samples, watched):
            rows = [values[read.tensor][:, read.used & self._gone[read.lanes.ids]].any(axis=1) for read in watched]
            count += int(np.any(rows, axis=0).sum())
        return count

    def _watched(self, channels: Array) -> list[Read]:
        """The reads of any of `channels` (n,), bool."""
        return [read for read in self._channels.reads if channels[read.lanes.ids].any()]

    def _values(self, samples: Samples, watched: list[Read]) -> Iterator[dict[str, Array]]:
        """By tensor, where each row's lanes are not 0 (rows, L), part by part."""
        axes = {read.tensor: read.lanes.axis for read in watched}
        if not axes:
            return
        graph = self._channels.graph
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        del model.graph.output[:]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in axes)
        runtime = OnnxRuntime(model.SerializeToString(), threads=1)
        rows = CHUNK_ROWS if graph.free_batch else 1
        try:
            for start in range(0, len(samples), rows):
                found = runtime.run(samples.take(slice(start, start + rows)).inputs)
                yield {name: _awake(found[name], axis) for name, axis in axes.items()}
        finally:
            runtime.close()


def layer_channels(graph: Graph) -> dict[str, int]:
    """How many channels each layer makes, by its name; layers whose weights are not constant are left out."""
    found = {}
    for node in graph.nodes:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in graph.constants:
            shape, told = graph.constants[node.input[1]].shape, attributes(node)
            if node.op_type == "Conv" or told.get("transB"):
                found[label(node)] = shape[0]
            else:
                found[label(node)] = shape[1] * told.get("group", 1) if len(shape) > 1 else 1
    return found


def _proven(channels: Channels) -> Array:
    return channels.removable(ChannelBounds(channels).alive())


def _awake(values: Array, axis: int) -> Array:
    others = tuple(i for i in range(1, values.ndim) if i != axis)
    awake: Array = (values != 0).any(axis=others)
    return awake
