"""Finds the batch axis of each input and output, and proves it by running the model on one and on two rows."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx

from converters.frontends.interface.axes import BatchAxes, Dims, is_batch_name, is_free, likely_batches, open_axes
from converters.frontends.interface.deciding import ONE_DECISION, decides_by_value
from converters.frontends.interface.protobuf import declared_dims, dims_of, inputs_of
from converters.frontends.interface.trial import joined, opened, plausible_row, same, with_free_batch
from edgekit.errors import DataError, RuntimeLoadError
from edgekit.tensors import Array

Failed = (RuntimeLoadError, DataError)
EQUAL = 1e-6  # of one row's answers beside different rows; kernels compute each row alike
PAIRS = ((0, 1), (0, 2), (2, 1))
ALIKE = 0.05  # of one row's answers alone and beside another row, where kernels may add in another order


class Found(msgspec.Struct, frozen=True):
    """The batch of a model, as far as it is known.

    Attributes:
        inputs: The batch axis of each input; None for an input without one.
        outputs: The batch axis of each output; None for an output without one.
        free: The model takes any number of rows at once.
        shapes: The shape of each output of one row, from a run; empty where the model could not be run.
        rejected: Free axes that are no batch, because rows depend on each other, by input.
        notes: What the user should know, one sentence each.
    """

    inputs: BatchAxes
    outputs: BatchAxes
    free: bool
    shapes: dict[str, tuple[int, ...]] = {}
    rejected: dict[str, list[int]] = {}
    notes: tuple[str, ...] = ()


class _RefutedError(Exception):
    """An axis is no batch: the answer to one row depends on the other rows, or `mixed`: an output mixes rows."""

    def __init__(self, *, mixed: bool = False) -> None:
        super().__init__()
        self.mixed = mixed


def find_batch(model: onnx.ModelProto) -> Found:
    """The batch of each input and output of `model`, whose other free axes are settled.

    Evidence comes before names: an output axis that doubles with two rows is its batch, and the answer to a row must
    not depend on the other rows. A model that is made for one row keeps its batch of 1; where no batch can be told,
    a call takes one sample.
    """
    inputs = {value.name: dims_of(value) for value in inputs_of(model)}
    hypotheses = likely_batches(inputs)
    if not hypotheses:
        return _all_fixed(model)
    rejected: dict[str, list[int]] = {}
    for axes in hypotheses:
        chosen = {name: axis for name, axis in axes.items() if axis is not None and is_free(inputs[name][axis])}
        if open_axes(inputs, axes):
            continue
        try:
            return _proven(model, axes)
        except _RefutedError as refuted:
            if not refuted.mixed and not all(is_batch_name(inputs[name][axis]) for name, axis in chosen.items()):
                rejected = {name: [axis] for name, axis in chosen.items()}
    note = "no axis is a batch: the answer to a row depends on the other rows; a call takes one sample"
    return msgspec.structs.replace(without_batch(model), rejected=rejected, notes=(note,))


def without_batch(model: onnx.ModelProto, *notes: str) -> Found:
    """The model as it is, one sample a call. Free axes are kept where the model cannot be run."""
    inputs: BatchAxes = {value.name: None for value in inputs_of(model)}
    outputs: BatchAxes = {value.name: None for value in model.graph.output}
    try:
        with opened(model) as runtime:
            shapes = _shapes(runtime.run(plausible_row(model, inputs, 0)))
    except Failed:
        shapes = {}
    return Found(inputs, outputs, False, shapes, notes=notes)


def _shapes(answers: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in answers.items()}


def _all_fixed(model: onnx.ModelProto) -> Found:
    """The batch of a model whose every size is fixed: the first axis if it is 1 everywhere."""
    inputs = {value.name: dims_of(value) for value in inputs_of(model)}
    outputs = {value.name: declared_dims(value) for value in model.graph.output}
    axes: BatchAxes = {name: 0 if dims else None for name, dims in inputs.items()}
    if not inputs or any(dims[0] != 1 for dims in inputs.values() if dims) or not any(inputs.values()):
        return without_batch(model, _no_batch(inputs, outputs))
    if all(dims and dims[0] == 1 for dims in (*inputs.values(), *outputs.values())):
        open_outputs = any(is_free(axis) for dims in outputs.values() for axis in dims)
        shapes = without_batch(model).shapes if open_outputs else {}
        return Found(axes, dict.fromkeys(outputs, 0), False, shapes)
    try:
        return msgspec.structs.replace(_proven(model, axes), free=False)
    except _RefutedError:
        return without_batch(model, "the model has no batch: a call takes one sample")


def _no_batch(inputs: Mapping[str, Dims], outputs: Mapping[str, Dims]) -> str:
    """Why a model whose every size is fixed has no batch, and what to do where the first axis may be one."""
    sizes = {dims[:1] for dims in (*inputs.values(), *outputs.values())}
    size = next(iter(sizes))
    if len(sizes) != 1 or not size:
        return "the model has no batch: a call takes one sample"
    shapes = " ".join(f"--input-shape {name}={','.join(map(str, (1, *dims[1:])))}" for name, dims in inputs.items())
    return f"a call takes {size[0]} rows, as one sample; to convert the model for single rows, give {shapes}"


def _proven(model: onnx.ModelProto, axes: BatchAxes) -> Found:
    """The batch `axes`, checked by runs of one and two rows. Raises _RefutedError where rows depend on each other."""
    free = with_free_batch(model, axes)
    rows = [plausible_row(model, axes, seed) for seed in (1, 2, 3)]
    try:
        with opened(free) as runtime:
            alone = [runtime.run(row) for row in rows[:2]]
            shapes = _shapes(alone[0])
            if _shapes(alone[1]) != shapes:  # sizes that depend on values; the checks of operators say where to cut
                return msgspec.structs.replace(_declared(model, axes), free=False)
            if decides_by_value(model.graph, [name for name, axis in axes.items() if axis is not None]):
                return _one_row(model, axes, shapes, ONE_DECISION)
            try:
                pairs = {pair: runtime.run(joined([rows[i] for i in pair], axes)) for pair in PAIRS}
            except Failed:
                return _one_row(model, axes, shapes, "the batch is fixed inside the model")
    except Failed:
        return _declared(model, axes)
    if not any(_doubled(shapes[name], value.shape) for name, value in pairs[0, 1].items()):
        if any(not same(value, pairs[0, 2][name], EQUAL) for name, value in pairs[0, 1].items()):
            raise _RefutedError  # an average over time keeps its size too, and reads every row
        return _one_row(model, axes, shapes, "outputs keep their size with more rows")
    outputs: BatchAxes = {name: _output_axis(name, alone, pairs) for name in shapes}
    whole = all(axis is not None for axis in (*outputs.values(), *axes.values()))
    return Found(axes, outputs, whole, shapes)


def _doubled(one: tuple[int, ...], two: tuple[int, ...]) -> list[int]:
    """The axis of an output that is twice as long with two rows, in a list; empty where there is none."""
    if len(one) != len(two):
        return []
    changed = [index for index, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    return changed if len(changed) == 1 and two[changed[0]] == 2 * one[changed[0]] else []


def _output_axis(
    name: str, alone: list[dict[str, Array]], pairs: Mapping[tuple[int, int], dict[str, Array]]
) -> int | None:
    """The batch axis of one output; None for one that is the same for all inputs.

    Raises:
        _RefutedError: A row's answer depends on the other rows, or rows are mixed along another axis.
    """
    first, second, pair = alone[0][name], alone[1][name], pairs[0, 1][name]
    doubled = _doubled(first.shape, pair.shape)
    if not doubled:
        if first.shape == pair.shape and same(first, second, EQUAL) and same(first, pair, EQUAL):
            return None
        raise _RefutedError
    axis = doubled[0]
    if first.shape[axis] != 1:
        raise _RefutedError(mixed=True)
    beside = [
        (pair.take([0], axis), pairs[0, 2][name].take([0], axis)),
        (pair.take([1], axis), pairs[2, 1][name].take([1], axis)),
    ]
    if not all(same(*answers, EQUAL) for answers in beside):
        raise _RefutedError
    moved = [same(one, answers[0], ALIKE) for one, answers in zip((first, second), beside, strict=True)]
    if first.dtype.kind == "f" and not all(moved):
        raise _RefutedError
    return axis


def _one_row(model: onnx.ModelProto, axes: BatchAxes, shapes: dict[str, tuple[int, ...]], why: str) -> Found:
    """A model that is made for one row: the logical batch is free, and artifacts run row by row."""
    outputs = {value.name: _batch_of_one(value, shapes, axes, model) for value in model.graph.output}
    if any(axis is None for axis in outputs.values()):
        return without_batch(model, f"{why}: a call takes one sample")
    return Found(axes, outputs, False, shapes, notes=(f"{why}: rows run one at a time",))


def _batch_of_one(
    value: object, shapes: Mapping[str, tuple[int, ...]], axes: BatchAxes, model: onnx.ModelProto
) -> int | None:
    """The axis of size 1 that is an output's batch: with the symbol of the batch, or else the first."""
    name, dims = value.name, declared_dims(value)  # type: ignore[attr-defined]
    symbols = {dims_of(one)[axis] for one in inputs_of(model) if (axis := axes.get(one.name)) is not None}
    named = [index for index, axis in enumerate(dims) if isinstance(axis, str) and axis in symbols]
    candidates = [index for index in (*named[:1], 0) if index < len(shapes[name]) and shapes[name][index] == 1]
    return candidates[0] if candidates else None


def _declared(model: onnx.ModelProto, axes: BatchAxes) -> Found:
    """The batch that the model declares, where it could not be run."""
    symbols = {dims_of(one)[axis] for one in inputs_of(model) if (axis := axes.get(one.name)) is not None}
    outputs: BatchAxes = {}
    one_row = False
    for value in model.graph.output:
        dims = declared_dims(value)
        named = [index for index, axis in enumerate(dims) if isinstance(axis, str) and axis in symbols]
        free = [index for index, axis in enumerate(dims) if is_free(axis)]
        baked = [] if named or free or dims[:1] != (1,) else [0]  # the batch is fixed inside the model
        one_row = one_row or bool(baked)
        outputs[value.name] = next(iter((*named, *free[:1], *baked)), None)
    whole = all(axis is not None for axis in (*outputs.values(), *axes.values()))
    return Found(axes, outputs, whole and not one_row)
