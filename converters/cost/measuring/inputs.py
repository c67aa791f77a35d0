"""The inputs with which an artifact is measured: one sample, and a state of zeros."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.bundle.bindings import Binding
from edgekit.bundle.state import first_call
from edgekit.runtimes import LogicalRuntime
from edgekit.tensors import Array


def first_sample(
    runtime: LogicalRuntime, bindings: tuple[Binding, ...], samples: Mapping[str, Array]
) -> dict[str, Array]:
    """The artifact's own inputs for the first of `samples` (N, ...), which need not have the state.

    Raises:
        DataError: The samples do not fit the model.
    """
    return runtime.artifact_inputs(first_call(runtime.inputs, bindings, samples))
