"""The constants of an ONNX graph by name. Large ones are read when they are used, and not kept."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekit.tensors import Array

RECENT_BYTES = 16 << 20  # of the constants used last, which are kept


class Constants(Mapping[str, Array]):
    """Constant values by name: initializers and Constant nodes.

    A conversion holds several graphs with the same weights, and their arrays would need the memory of each graph a
    second time.

    Args:
        graph: The graph; it must not change any more.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self._lists: dict[str, Array] = {}
        self._used: weakref.WeakValueDictionary[str, Array] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[str, Array] = OrderedDict()
        self._recent_bytes = 0
        for node in graph.node:
            if node.op_type == "Constant":
                self._add(node)

    def __getitem__(self, name: str) -> Array:
        if name in self._lists:
            return self._lists[name]
        found = self._used.get(name)
        if found is None:
            found = self._used[name] = numpy_helper.to_array(self._tensors[name])
            self._remember(name, found)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._lists

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._lists

    def __len__(self) -> int:
        return len(self._tensors) + len(self._lists)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each constant, without reading its values."""
        read = {name: tuple(map(int, tensor.dims)) for name, tensor in self._tensors.items()}
        return {**read, **{name: value.shape for name, value in self._lists.items()}}

    def _add(self, node: Any) -> None:
        name = node.output[0]
        for attribute in node.attribute:
            if attribute.name == "value":
                self._tensors[name] = attribute.t
            elif attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
                kind = np.float32 if "float" in attribute.name else np.int64
                self._lists[name] = np.array(helper.get_attribute_value(attribute), dtype=kind)

    def _remember(self, name: str, value: Array) -> None:
        """Keep the arrays used last, so that loops over the nodes do not read the same ones again and again."""
        self._recent[name] = value
        self._recent_bytes += value.nbytes
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= self._recent.popitem(last=False)[1].nbytes
