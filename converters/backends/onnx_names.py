"""Names of constants in branches and loops, where each graph inside another may use a name again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any


def name_apart(model: Any) -> None:
    """Give the constants of branches and loops names that no other constant of `model`, which is changed, has.

    ONNX Runtime's conversion to half precision asserts this.
    """
    _name_apart(model.graph, set())


def _name_apart(graph: Any, used: set[str]) -> None:
    """Give constants of branches and loops names that no other constant has, which the converter asserts."""
    new = {}
    for tensor in graph.initializer:
        if tensor.name in used:
            new[tensor.name] = next(name for i in itertools.count() if (name := f"{tensor.name}.{i}") not in used)
            tensor.name = new[tensor.name]
        used.add(tensor.name)
    _rename(graph, new)
    for inner in (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")):
        _name_apart(inner, used)


def _rename(graph: Any, new: Mapping[str, str]) -> None:
    """Read the tensors `new` by their new names in a graph, and in those inside it that do not hide them."""
    if not new:
        return
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                hidden = {value.name for value in (*attribute.g.input, *attribute.g.initializer)}
                hidden.update(name for inner in attribute.g.node for name in inner.output)
                _rename(attribute.g, {old: name for old, name in new.items() if old not in hidden})
    for value in graph.output:
        value.name = new.get(value.name, value.name)
