"""Checks of an answer of the cloud tier against the device's own model. Pure: they judge given values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from device_agents.inference.cloud.failures import CloudInterfaceError, CloudUnusableError
from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import probability_faults
from edgekit.tensors import Array, TensorSpec

_NO_OUTPUTS: Mapping[str, Array] = {}


class Expected(NamedTuple):
    """The device's knowledge of the answer that it asks for.

    Attributes:
        outputs: Outputs of the device's model; empty where it has no local bundle.
        inputs: Inputs of the device's model.
        sent: The inputs that were sent.
        task: Task of the device's model.
        local: The device's own answer; empty where there is none.
        wanted: Outputs that the client needs; empty for all of them.
    """

    outputs: Sequence[TensorSpec] = ()
    inputs: Sequence[TensorSpec] = ()
    sent: Mapping[str, Array] = _NO_OUTPUTS
    task: Task = Task()
    local: Mapping[str, Array] = _NO_OUTPUTS
    wanted: Collection[str] = ()

    @property
    def needed(self) -> Collection[str] | None:
        """Names of the outputs that somebody needs; None where that is not known."""
        return self.wanted or [spec.name for spec in self.outputs] or None


def checked(outputs: Mapping[str, Array], expected: Expected) -> dict[str, Array]:
    """The needed outputs of an answer.

    Raises:
        CloudInterfaceError: an output is missing, or has another dtype, shape or number of classes.
        CloudUnusableError: another number of rows than was sent, NaN or infinity although all inputs were finite, or no
            probabilities where they are due.
    """
    specs = [spec for spec in expected.outputs if not expected.wanted or spec.name in expected.wanted]
    missing = [name for name in expected.needed or () if name not in outputs]
    faults = [f"output {name!r} is missing" for name in missing]
    faults += [fault for spec in specs if spec.name in outputs for fault in spec.faults(outputs[spec.name])]
    if faults:
        raise CloudInterfaceError(
            "the cloud tier's model answers differently from the device's: " + "; ".join(faults),
        )
    rows = _rows(expected.inputs, expected.sent)
    faults = [fault for spec in specs for fault in _row_faults(spec, outputs[spec.name], rows, expected.local)]
    names = expected.needed or outputs
    kept = {name: outputs[name] for name in names}
    if all(_is_finite(value) for value in expected.sent.values()):  # else the answer follows from what was sent
        for name, value in kept.items():
            faults += _value_faults(name, value, expected.local.get(name))
    task = expected.task
    if task.output in kept and not faults:
        faults = probability_faults(task, kept[task.output], expected.local.get(task.output))
    if faults:
        raise CloudUnusableError("the cloud tier's answer cannot be right: " + "; ".join(faults))
    return kept


def _rows(inputs: Sequence[TensorSpec], sent: Mapping[str, Array]) -> int | None:
    """The rows that were sent; None where the model has no batch."""
    for spec in inputs:
        axis = spec.batch_axis
        if axis is not None and spec.name in sent and sent[spec.name].ndim > axis:
            return int(sent[spec.name].shape[axis])
    return None


def _row_faults(spec: TensorSpec, value: Array, rows: int | None, local: Mapping[str, Array]) -> list[str]:
    """Outputs whose free axis does not count rows, as the device's own answer shows, may have any length there."""
    axis = spec.batch_axis
    if axis is None or rows is None or value.shape[axis] == rows:
        return []
    own = local.get(spec.name)
    if own is not None and own.ndim > axis and own.shape[axis] != rows:
        return []
    return [f"{spec.name} has {value.shape[axis]} rows for the {rows} that were sent"]


def _is_finite(value: Array) -> bool:
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _value_faults(name: str, value: Array, local: Array | None) -> list[str]:
    """NaN is never right. Infinity may be a masked value, where the device's own answer has it too."""
    if _is_finite(value):
        return []
    if bool(np.isnan(value).any()):
        return [f"{name} has NaN"]
    return [] if local is not None and bool(np.isinf(local).any()) else [f"{name} has infinite values"]
