"""The interface of the source model: its tensors, where each one's batch axis is, and which inputs are fixed or unread.

The canonical graph has the batch as the first axis of every input and output. This value says what the source looked
like, so that bundles offer the source's own tensors.
"""

from __future__ import annotations

import msgspec

from edgekit.tensors import TensorSpec

Number = bool | int | float


class SourceInput(msgspec.Struct, frozen=True):
    """One input of the source model.

    Attributes:
        spec: The source's name, dtype and shape. The free batch is the None in its shape, wherever it stands; an input
            without a batch has no None.
        value: The input always has this value in every element, and the graph is specialised for it; None if free.
        unread: No operator reads the input. It stays in the interface, and the graph does not have it.
    """

    spec: TensorSpec
    value: Number | None = None
    unread: bool = False

    @property
    def in_graph(self) -> bool:
        """True if the canonical graph has this input."""
        return self.value is None and not self.unread


class Interface(msgspec.Struct, frozen=True):
    """Inputs and outputs of the source model.

    Attributes:
        inputs: All inputs in order, fixed and unread ones too.
        outputs: All outputs in order; the free batch is the None in the shape, an output without a batch has no None.
        state: Name of the output that feeds an input in the next call of a stream, by the input's name.
        notes: What the user should know of how the interface was found, one sentence each.
    """

    inputs: tuple[SourceInput, ...]
    outputs: tuple[TensorSpec, ...]
    state: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """True if the canonical graph has the same tensors: all are in it, and the batch is their first axis."""
        specs = (*(one.spec for one in self.inputs), *self.outputs)
        return all(one.in_graph for one in self.inputs) and all(spec.batch_axis == 0 for spec in specs)

    @property
    def others(self) -> tuple[SourceInput, ...]:
        """Inputs that the graph does not have: fixed and unread ones."""
        return tuple(one for one in self.inputs if not one.in_graph)

    @property
    def batched(self) -> bool:
        """True if a call may have several rows: some input has a batch."""
        return any(one.spec.batch_axis is not None for one in self.inputs)

    @property
    def by_rows(self) -> bool:
        """True if all rows of a call are independent samples: each read input and each output has a batch."""
        read = [one.spec for one in self.inputs if one.in_graph]
        return bool(read) and all(spec.batch_axis is not None for spec in (*read, *self.outputs))


def sample_spec(spec: TensorSpec) -> TensorSpec:
    """The tensor as data files and the canonical graph have it: a free sample axis first, then the other axes.

    Where there is no batch, a first axis of 1 is the sample axis; other tensors get one more axis.
    """
    axis = sample_axis(spec)
    rest = spec.shape if axis is None else (*spec.shape[:axis], *spec.shape[axis + 1 :])
    return TensorSpec(spec.name, spec.dtype, (None, *rest))


def sample_axis(spec: TensorSpec) -> int | None:
    """The axis of the tensor that is the sample axis: the batch, or a first axis of 1; None where one is added."""
    return 0 if None not in spec.shape and spec.shape[:1] == (1,) else spec.batch_axis


def artifact_permute(spec: TensorSpec, permute: tuple[int, ...]) -> tuple[int, ...]:
    """The transposition from the logical tensor to an artifact's; empty if their axes are in the same order.

    Args:
        spec: The logical tensor.
        permute: The transposition from the canonical tensor (sample axis first) to the artifact's, whose batch is
            first too; empty for none.

    Returns:
        The order of the logical axes. An artifact's first axis of 1 that the logical tensor does not have is left out.
    """
    axis = sample_axis(spec)
    order = permute or tuple(range(len(spec.shape) + (axis is None)))
    if axis is None:
        made = tuple(index - 1 for index in order[1:])
    else:
        canonical = (axis, *(index for index in range(len(spec.shape)) if index != axis))
        made = tuple(canonical[index] for index in order)
    return () if made == tuple(range(len(made))) else made
