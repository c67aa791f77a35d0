"""Bindings: how logical tensors map to the artifact's: axis order, integers with a scale, several parts.

Bindings are part of a manifest; `edgekit.runtimes.logical` applies them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.tensors import DType, TensorSpec


class Binding(msgspec.Struct, frozen=True):
    """The mapping of one logical tensor, which clients see, to the artifact.

    Attributes:
        spec: The logical tensor: the source model's name, dtype, layout and free batch.
        artifact: The artifact's own tensor; for an output in parts, the tensor of the joined parts.
        permute: The transposition from the logical to the artifact's axes; empty if they agree.
        scale: Real value of one integer step of a quantized tensor; None if it is not quantized.
        zero_point: The integer for 0.0.
        joined: The parts of an output that is several tensors of the artifact, each with its own scale; absent for a
            single tensor.
        value: Of an input: the only value that it takes, in every element; the artifact has no such tensor. Absent for
            an input that is free.
        unread: Of an input: True where the model does not read it; the artifact has no such tensor. Absent otherwise.
        state: Of an input: the output that is its value in the next call of the same stream; absent for an input that
            clients send.
    """

    spec: TensorSpec
    artifact: TensorSpec
    permute: tuple[int, ...] = ()
    scale: float | None = None
    zero_point: int = 0
    # UNSET and not None, so that manifests without it keep their bytes and digest.
    joined: Joined | msgspec.UnsetType = msgspec.UNSET
    state: str | msgspec.UnsetType = msgspec.UNSET
    value: bool | int | float | msgspec.UnsetType = msgspec.UNSET
    unread: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def in_artifact(self) -> bool:
        """False for an input that the artifact does not have: it is fixed or unread."""
        return self.value is msgspec.UNSET and self.unread is not True

    @property
    def adds_axis(self) -> bool:
        """True where the logical tensor has no batch and the artifact has a first axis of 1 for it."""
        spec, artifact = self.spec.shape, self.artifact.shape
        return None not in spec and len(artifact) == len(spec) + 1 and artifact[0] == 1

    @property
    def parts(self) -> tuple[Binding, ...]:
        """The bindings of the artifact's own tensors: the parts, or this binding itself."""
        return self.joined.parts if isinstance(self.joined, Joined) else (self,)


class Joined(msgspec.Struct, frozen=True):
    """An output that consists of several tensors of the artifact.

    Attributes:
        axis: Axis of the logical tensor along which the parts are joined; never the batch.
        parts: Bindings of the parts in order; `spec` describes the part, and a part has no parts itself.
    """

    axis: int
    parts: tuple[Binding, ...]


def binding_faults(inputs: Sequence[Binding], outputs: Sequence[Binding]) -> list[str]:
    """Every reason why these bindings are not valid; empty if they are valid."""
    faults = []
    if not inputs or not outputs:
        faults.append("a model needs at least one input and one output")
    for binding in inputs:
        faults += _tensor_faults(binding)
        if isinstance(binding.joined, Joined):
            faults.append(f"{binding.spec.name}: an input has parts, which only outputs can have")
        faults += _absent_faults(binding) + layout_faults(binding)
    if inputs and not any(binding.in_artifact for binding in inputs):
        faults.append("every input is fixed or unread, expected at least one that the artifact reads")
    for binding in outputs:
        if not binding.in_artifact:
            faults.append(f"{binding.spec.name}: an output is fixed or unread, which only inputs can be")
        faults += [fault for part in binding.parts for fault in (*_tensor_faults(part), *layout_faults(part))]
        faults += _joined_faults(binding, binding.joined) if isinstance(binding.joined, Joined) else []
    artifact_names = [part.artifact.name for binding in outputs for part in binding.parts]
    names = {binding.artifact.name for binding in outputs if isinstance(binding.joined, Joined)}
    faults += [
        f"{name} is the name of a joined output and of a tensor of the artifact"
        for name in sorted(names & {*artifact_names})
    ]
    return faults + _state_faults(inputs, outputs)


def _absent_faults(binding: Binding) -> list[str]:
    """Every reason why an input cannot be absent from the artifact."""
    name, value, dtype = binding.spec.name, binding.value, binding.spec.dtype
    if binding.in_artifact:
        return []
    faults = []
    if isinstance(binding.state, str):
        faults.append(f"{name}: state cannot be fixed or unread")
    if value is not msgspec.UNSET and not _can_hold(dtype, value):
        faults.append(f"{name}: it is fixed to {value!r}, which {dtype.value} cannot hold")
    return faults


def _can_hold(dtype: DType, value: object) -> bool:
    kind = dtype.numpy.kind
    kinds: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}
    return isinstance(value, kinds.get(kind, ())) and (kind == "b" or not isinstance(value, bool))


def layout_faults(binding: Binding) -> list[str]:
    """Every reason why the axes of the artifact's tensor do not fit the logical tensor.

    The artifact has the batch first, wherever the logical tensor has it. A tensor without a batch may have one more
    axis in the artifact, the first, of size 1.
    """
    name, spec, artifact, batch = binding.spec.name, binding.spec.shape, binding.artifact.shape, binding.spec.batch_axis
    if not binding.in_artifact or binding.adds_axis:
        return []
    if len(spec) != len(artifact):
        return [f"{name}: {len(spec)} axes, the artifact has {len(artifact)}"]
    if batch is None:
        return []
    if artifact[0] not in (None, 1):
        return [f"{name}: the batch is free, the artifact's is {artifact[0]}, expected 1 or any"]
    if (binding.permute or range(len(spec)))[0] != batch:
        return [f"{name}: permute {list(binding.permute)} moves the batch axis {batch} away from the front"]
    return []


def _state_faults(inputs: Sequence[Binding], outputs: Sequence[Binding]) -> list[str]:
    """Every reason why the inputs that are state cannot be fed from outputs."""
    of_outputs = [*outputs, *(part for one in outputs for part in one.parts)]
    faults = [
        f"{binding.spec.name}: an output has state, which only inputs can have"
        for binding in dict.fromkeys(of_outputs)
        if isinstance(binding.state, str)
    ]
    by_name = {binding.spec.name: binding.spec for binding in outputs}
    fed: dict[str, str] = {}
    for binding in inputs:
        if not isinstance(binding.state, str):
            continue
        spec, output = binding.spec, by_name.get(binding.state)
        if output is None:
            faults.append(f"{spec.name}: its state comes from output {binding.state!r}, which does not exist")
            continue
        if (output.dtype, output.shape) != (spec.dtype, spec.shape):
            faults.append(
                f"{spec.name}: the state is {spec.dtype.value} {spec.shape_text}, "
                f"its output {output.name} is {output.dtype.value} {output.shape_text}"
            )
        if output.name in fed:
            faults.append(f"{spec.name}: output {output.name} is the state of {fed[output.name]} already")
        fed[output.name] = spec.name
    if fed and (len(fed) == len(inputs) or len(fed) == len(outputs)):
        faults.append("every input or every output is state, a model needs at least one of each that clients see")
    return faults


def _tensor_faults(binding: Binding) -> list[str]:
    faults = []
    rank = len(binding.spec.shape)
    if binding.permute and sorted(binding.permute) != list(range(rank)):
        faults.append(f"{binding.spec.name}: permute {list(binding.permute)} is not an order of {rank} axes")
    quantized = binding.artifact.dtype in (DType.INT8, DType.UINT8) and binding.spec.dtype is DType.FLOAT32
    if quantized and not (binding.scale and binding.scale > 0):
        faults.append(f"{binding.spec.name}: the artifact is {binding.artifact.dtype.value} but has no scale")
    return faults


def _joined_faults(binding: Binding, joined: Joined) -> list[str]:
    """Every reason why the parts of an output cannot be joined."""
    whole, name, axis = binding.spec, binding.spec.name, joined.axis
    if not 1 <= axis < len(whole.shape):
        return [f"{name}: its parts are joined along axis {axis}, expected 1 to {len(whole.shape) - 1}"]
    faults = []
    if len(joined.parts) < 2:
        faults.append(f"{name}: it is joined from {len(joined.parts)} parts, expected 2 or more")
    if binding.permute or binding.scale is not None or not _same(binding.artifact, whole, ()):
        faults.append(f"{name}: an output in parts cannot also be quantized, cast, permuted or reshaped as a whole")
    for part in joined.parts:
        faults += [f"{name}: its part {part.spec.name} {fault}" for fault in _part_faults(binding, axis, part)]
    sizes = [part.spec.shape[axis] for part in joined.parts if axis < len(part.spec.shape)]
    if None in sizes or sum(size or 0 for size in sizes) != whole.shape[axis]:
        sum_text = " + ".join("any" if size is None else str(size) for size in sizes)
        faults.append(f"{name}: its parts have {sum_text} along axis {axis}, expected {whole.shape[axis]} together")
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
        faults.append(f"has the artifact shape {part.artifact.shape_text}, expected {spec.shape_text}{how}")
    if part.artifact.shape[:1] != binding.artifact.shape[:1]:
        faults.append(f"has another batch than the whole: {part.artifact.shape_text}, {binding.artifact.shape_text}")
    return faults


def _same(artifact: TensorSpec, spec: TensorSpec, permute: Sequence[int], *, dtype: bool = True) -> bool:
    """True if `artifact` is `spec` permuted; the batch can differ."""
    order = permute if sorted(permute) == list(range(len(spec.shape))) else range(len(spec.shape))
    return artifact.shape[1:] == tuple(spec.shape[i] for i in order)[1:] and not (
        dtype and artifact.dtype is not spec.dtype
    )


def _without(shape: tuple[int | None, ...], axis: int) -> tuple[int | None, ...]:
    return (*shape[:axis], *shape[axis + 1 :])
