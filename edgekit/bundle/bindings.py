"""How an artifact holds the tensors that clients see: another axis order, integers with a scale, several parts.

Part of a manifest; `edgekit.runtimes.logical` applies it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.tensors import DType, TensorSpec


class Binding(msgspec.Struct, frozen=True):
    """How one logical tensor, which clients see, is held by the artifact.

    Attributes:
        spec: The logical tensor: the source model's name, dtype, layout and free batch.
        artifact: The artifact's own tensor; of an output held in parts, what they are when joined.
        permute: Axis order that turns the logical tensor into the artifact's; empty when the layouts agree.
        scale: Real value of one integer step where the artifact's tensor is quantized, else None.
        zero_point: Integer that stands for 0.0.
        joined: The parts of an output that the artifact gives one by one, each with a scale of its own; absent where it
            is one tensor.
    """

    spec: TensorSpec
    artifact: TensorSpec
    permute: tuple[int, ...] = ()
    scale: float | None = None
    zero_point: int = 0
    # Absent and not null, so that the bytes of a manifest without it are those they always were.
    joined: Joined | msgspec.UnsetType = msgspec.UNSET

    @property
    def parts(self) -> tuple[Binding, ...]:
        """The bindings of the artifact's own tensors: its parts, or itself alone."""
        return self.joined.parts if isinstance(self.joined, Joined) else (self,)


class Joined(msgspec.Struct, frozen=True):
    """An output that lies in several tensors of the artifact.

    Attributes:
        axis: Of the logical tensor, along which its parts follow each other; never the batch.
        parts: In order; each binds a piece of the logical tensor, whose `spec` says which, and has no parts itself.
    """

    axis: int
    parts: tuple[Binding, ...]


def binding_faults(inputs: Sequence[Binding], outputs: Sequence[Binding]) -> list[str]:
    """Every reason why a manifest with these bindings may not be used; empty when they are sound."""
    faults = []
    if not inputs or not outputs:
        faults.append("a model needs at least one input and one output")
    for binding in inputs:
        faults += _holding_faults(binding)
        if isinstance(binding.joined, Joined):
            faults.append(f"{binding.spec.name}: an input is held in parts, which only outputs can be")
    for binding in outputs:
        faults += [fault for part in binding.parts for fault in _holding_faults(part)]
        faults += _joined_faults(binding, binding.joined) if isinstance(binding.joined, Joined) else []
    held = [part.artifact.name for binding in outputs for part in binding.parts]
    names = {binding.artifact.name for binding in outputs if isinstance(binding.joined, Joined)}
    faults += [f"{name} names a joined output and a tensor of the artifact" for name in sorted(names & {*held})]
    return faults


def _holding_faults(binding: Binding) -> list[str]:
    faults = []
    rank = len(binding.spec.shape)
    if binding.permute and sorted(binding.permute) != list(range(rank)):
        faults.append(f"{binding.spec.name}: permute {list(binding.permute)} is no order of {rank} axes")
    quantized = binding.artifact.dtype in (DType.INT8, DType.UINT8) and binding.spec.dtype is DType.FLOAT32
    if quantized and not (binding.scale and binding.scale > 0):
        faults.append(f"{binding.spec.name}: the artifact is {binding.artifact.dtype.value} but no scale is given")
    return faults


def _joined_faults(binding: Binding, joined: Joined) -> list[str]:
    """What keeps the parts of an output from being put together to it."""
    whole, name, axis = binding.spec, binding.spec.name, joined.axis
    if not 1 <= axis < len(whole.shape):
        return [f"{name}: its parts are joined along axis {axis}, expected 1 to {len(whole.shape) - 1}"]
    faults = []
    if len(joined.parts) < 2:
        faults.append(f"{name}: it is joined of {len(joined.parts)} parts, expected 2 or more")
    if binding.permute or binding.scale is not None or not _same(binding.artifact, whole, ()):
        faults.append(f"{name}: it is held in parts and also quantized, cast, permuted or of another shape as a whole")
    for part in joined.parts:
        faults += [f"{name}: its part {part.spec.name} {fault}" for fault in _part_faults(binding, axis, part)]
    sizes = [part.spec.shape[axis] for part in joined.parts if axis < len(part.spec.shape)]
    if None in sizes or sum(size or 0 for size in sizes) != whole.shape[axis]:
        found = " + ".join("any" if size is None else str(size) for size in sizes)
        faults.append(f"{name}: its parts have {found} along axis {axis}, expected {whole.shape[axis]} together")
    return faults


def _part_faults(binding: Binding, axis: int, part: Binding) -> list[str]:
    whole, spec = binding.spec, part.spec
    faults = ["has parts itself"] if isinstance(part.joined, Joined) else []
    if spec.dtype is not whole.dtype:
        faults.append(f"has dtype {spec.dtype.value}, expected {whole.dtype.value}")
    if _without(spec.shape, axis) != _without(whole.shape, axis):
        faults.append(f"has shape {spec.shape_text}, expected {whole.shape_text} in all axes but {axis}")
    elif not _same(part.artifact, spec, part.permute, dtype=False):
        how = f" with its axes in the order {list(part.permute)}" if part.permute else ""
        faults.append(f"is held by {part.artifact.shape_text}, expected {spec.shape_text}{how}")
    if part.artifact.shape[:1] != binding.artifact.shape[:1]:
        faults.append(f"has another batch than the whole: {part.artifact.shape_text}, {binding.artifact.shape_text}")
    return faults


def _same(artifact: TensorSpec, spec: TensorSpec, permute: Sequence[int], *, dtype: bool = True) -> bool:
    """Whether `artifact` is `spec` permuted, whatever its batch."""
    order = permute if sorted(permute) == list(range(len(spec.shape))) else range(len(spec.shape))
    return artifact.shape[1:] == tuple(spec.shape[i] for i in order)[1:] and not (
        dtype and artifact.dtype is not spec.dtype
    )


def _without(shape: tuple[int | None, ...], axis: int) -> tuple[int | None, ...]:
    return (*shape[:axis], *shape[axis + 1 :])
