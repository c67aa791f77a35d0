"""Cuts a model at given tensors: they become its outputs, and what only later operators need is removed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import onnx

from converters.frontends.onnx.nodes import drop_unread
from converters.frontends.onnx.shapes import inferred_shapes
from edgekit.errors import SettingsError

MOST_NAMES = 5  # in messages


def cut_at(model: onnx.ModelProto, names: Sequence[str], source: str) -> onnx.ModelProto:
    """A copy whose outputs are the tensors `names`, in their order. Its inputs stay, also those that nobody reads now.

    Raises:
        SettingsError: A name is not a tensor that a node makes, or its type is not known.
        ModelFormatError: A node does not accept its inputs.
    """
    made = {name for node in model.graph.node for name in node.output if name}
    unknown = [name for name in names if name not in made]
    if unknown or len(set(names)) < len(names):
        raise _wrong_names(unknown or names, sorted(made), source)
    values = {value.name: value for value in inferred_values(model, source)}
    untyped = [name for name in names if not values.get(name, onnx.ValueInfoProto()).type.tensor_type.elem_type]
    if untyped:
        raise SettingsError(
            f"--cut: the type of tensor {untyped[0]} of {source} cannot be told",
            advice="Cut at another tensor; a viewer such as Netron shows their names.",
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(values[name] for name in names)
    drop_unread(copy.graph)
    return copy


def inferred_values(model: onnx.ModelProto, source: str) -> list[Any]:
    """Every tensor of the main graph whose type inference knows."""
    graph = inferred_shapes(model, source).graph
    return [*graph.input, *graph.value_info, *graph.output]


def _wrong_names(names: Sequence[str], made: Sequence[str], source: str) -> SettingsError:
    near = list(dict.fromkeys(one for name in names for one in difflib.get_close_matches(name, made, MOST_NAMES, 0.5)))
    last = list(made)[-MOST_NAMES:]
    if set(names) <= set(made):
        return SettingsError(f"--cut names a tensor twice: {', '.join(names)}", advice="Name each tensor once.")
    hint = f"Similar names are {', '.join(near[:MOST_NAMES])}." if near else f"Names are for example {', '.join(last)}."
    return SettingsError(
        f"--cut names {', '.join(names)}, which no operator of {source} makes",
        advice=f"{hint} --cut auto proposes where to cut.",
    )
