"""The inputs with which an artifact is measured: one sample, and a state of zeros."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.bundle.bindings import Binding
from edgekit.bundle.sample_rows import to_layout
from edgekit.bundle.state import state_links, zero_state
from edgekit.runtimes import LogicalRuntime
from edgekit.tensors import Array


def first_sample(
    runtime: LogicalRuntime, bindings: tuple[Binding, ...], samples: Mapping[str, Array]
) -> dict[str, Array]:
    """The artifact's own inputs for the first of `samples` (N, ...), which need not have the state.

    Raises:
        DataError: The samples do not fit the model.
    """
    given = zero_state(state_links(bindings), 1)
    for spec in runtime.inputs:
        if spec.name in samples and spec.name not in given:
            value = samples[spec.name]
            alone = spec.batch_axis is None and spec.fits(value)  # a call of a model without a batch, not samples of it
            given[spec.name] = value if alone else to_layout(spec, value[:1])
    return runtime.artifact_inputs(given)
