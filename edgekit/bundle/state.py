"""The state of a streaming model: outputs that are inputs of the next call of the same stream.

Clients do not see these tensors. The bindings of a manifest name them (`Binding.state`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgekit.bundle.bindings import Binding
from edgekit.bundle.sample_rows import from_layout, to_layout
from edgekit.errors import DataError
from edgekit.protocols import Runtime
from edgekit.tensors import Array, TensorSpec


class StateLink(NamedTuple):
    """One state tensor.

    Attributes:
        spec: The input that takes the state; the output has the same dtype and shape.
        output: Name of the output that is the input's value in the next call.
    """

    spec: TensorSpec
    output: str

    @property
    def row_bytes(self) -> int:
        """Bytes of the state of one row."""
        return math.prod(1 if size is None else size for size in self.spec.shape) * self.spec.dtype.numpy.itemsize

    def zero(self, rows: int) -> Array:
        """The state before the first call; `rows` is the size of a free axis."""
        shape = [rows if size is None else size for size in self.spec.shape]
        return np.zeros(shape, dtype=self.spec.dtype.numpy)


def state_links(inputs: Sequence[Binding]) -> tuple[StateLink, ...]:
    """The state tensors of a model with these input bindings; empty for a model without state."""
    return tuple(StateLink(one.spec, one.state) for one in inputs if isinstance(one.state, str))


def client_inputs(inputs: Sequence[Binding]) -> tuple[TensorSpec, ...]:
    """The logical inputs that clients send: all but state."""
    return tuple(one.spec for one in inputs if not isinstance(one.state, str))


def client_outputs(inputs: Sequence[Binding], outputs: Sequence[Binding]) -> tuple[TensorSpec, ...]:
    """The logical outputs that clients get: all but state."""
    hidden = {link.output for link in state_links(inputs)}
    return tuple(one.spec for one in outputs if one.spec.name not in hidden)


def zero_state(links: Sequence[StateLink], rows: int) -> dict[str, Array]:
    """The state of all inputs before the first call, by input name."""
    return {link.spec.name: link.zero(rows) for link in links}


def next_state(links: Sequence[StateLink], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The state for the next call, by input name, from the outputs of this one."""
    return {link.spec.name: outputs[link.output] for link in links}


def without_state(links: Sequence[StateLink], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs that clients see."""
    hidden = {link.output for link in links}
    return {name: value for name, value in outputs.items() if name not in hidden}


def first_call(
    specs: Sequence[TensorSpec], bindings: Sequence[Binding], samples: Mapping[str, Array]
) -> dict[str, Array]:
    """The inputs of one call with the first of `samples`, and a state of zeros.

    Args:
        specs: The logical inputs of the runtime, state included.
        bindings: The input bindings of its model.
        samples: Samples (N, ...) by input, which need not have the state.
    """
    given = zero_state(state_links(bindings), 1)
    for spec in specs:
        if spec.name in samples and spec.name not in given:
            value = samples[spec.name]
            alone = spec.batch_axis is None and spec.fits(value)  # a call of a model without a batch, not samples of it
            given[spec.name] = value if alone else to_layout(spec, value[:1])
    return given


def run_stream(runtime: Runtime, links: Sequence[StateLink], samples: Mapping[str, Array]) -> dict[str, Array]:
    """Run one stream from the zero state, one call a sample.

    Args:
        runtime: A runtime with all logical tensors, state included.
        links: The state tensors of its model.
        samples: Inputs that clients send (N, ...), by name, with the samples first.

    Returns:
        The outputs that clients see, by name: (N, ...), with the samples first.

    Raises:
        DataError, RuntimeLoadError: as Runtime.run; DataError too where there is no sample.
    """
    specs = {spec.name: spec for spec in runtime.inputs}
    state, answers = zero_state(links, 1), []
    for i in range(min((len(value) for value in samples.values()), default=0)):
        one = {name: value[i : i + 1] for name, value in samples.items()}
        call = {name: to_layout(specs[name], value) if name in specs else value for name, value in one.items()}
        outputs = runtime.run({**call, **state})
        state = next_state(links, outputs)
        answers.append(without_state(links, outputs))
    if not answers:
        raise DataError("the stream has no samples, expected 1 or more")
    shown = [spec for spec in runtime.outputs if spec.name in answers[0]]
    return {spec.name: np.concatenate([from_layout(spec, one[spec.name]) for one in answers]) for spec in shown}
