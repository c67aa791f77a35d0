"""LogicalRuntime: an artifact behind the source model's interface.

Clients see the source's names, dtypes, layout and free batch; the manifest's bindings say how the artifact holds each
tensor: another axis order, integers with a scale, half precision, a batch of one, an output in several parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from edgekit.bundle.bindings import Binding, Joined
from edgekit.errors import DataError, RuntimeLoadError
from edgekit.protocols import Runtime
from edgekit.tensors import Array, TensorSpec


class RawRuntime(Runtime, Protocol):
    """A Runtime whose tensors are the artifact's own."""

    @property
    def quantization(self) -> dict[str, tuple[float, int]]:
        """(scale, zero point) of integer inputs and outputs, by name, where the artifact states them."""
        ...


class LogicalRuntime:
    """Runtime over another one, with `inputs` and `outputs` applied.

    Args:
        raw: The artifact's own runtime; closed with this one.
        inputs, outputs: How logical tensors are held by the artifact.

    Raises:
        RuntimeLoadError: the artifact's tensors are not what the bindings say; `raw` is closed, all faults are named.
    """

    def __init__(self, raw: RawRuntime, inputs: Sequence[Binding], outputs: Sequence[Binding]) -> None:
        self._raw = raw
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._input_specs = tuple(binding.spec for binding in self._inputs)  # asked for several times a request
        self._output_specs = tuple(binding.spec for binding in self._outputs)
        self._input_plan, self._output_plan = _plan(self._inputs), _plan(self._outputs)
        self._in_parts = tuple(binding for binding in self._outputs if isinstance(binding.joined, Joined))
        self._by_row = any(_needs_rows(binding) for binding in self._inputs)
        faults = [
            *_artifact_faults("input", raw.inputs, self._inputs),
            *_artifact_faults("output", raw.outputs, [part for one in self._outputs for part in one.parts]),
            *_batch_faults(self._inputs, self._outputs, self._by_row),
        ]
        if faults:
            raw.close()
            raise RuntimeLoadError("the artifact is not what its manifest says: " + "; ".join(faults))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Logical inputs."""
        return self._input_specs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Logical outputs."""
        return self._output_specs

    @property
    def provider(self) -> str:
        """What really runs it."""
        return self._raw.provider

    @property
    def providers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What was asked for, and what was got."""
        found: tuple[tuple[str, ...], tuple[str, ...]] = getattr(self._raw, "providers", ((), (self._raw.provider,)))
        return found

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; a batch-1 artifact is run once a row.

        Raises:
            DataError: an input is missing, unknown, or of the wrong shape or dtype; names all faults.
            RuntimeLoadError: the runtime failed, or answered parts that do not fit together.
        """
        rows = check_inputs(self._input_specs, inputs)
        if rows == 0:
            return {spec.name: _empty(spec) for spec in self._output_specs}
        held = {}
        for name, own, plain, binding in self._input_plan:
            value = inputs[name]
            ready = plain and value.flags.c_contiguous and value.dtype.isnative  # runtimes read bytes as they lie
            held[own] = value if ready else to_artifact(binding, value)
        found = self._run_rows(held, rows) if self._by_row and rows is not None else self._raw.run(held)
        if self._in_parts:
            found = {**found, **{one.artifact.name: _joined(one, found) for one in self._in_parts}}
        made = {}
        for name, own, plain, binding in self._output_plan:
            value = found[own]
            made[name] = value if plain and value.flags.c_contiguous else to_logical(binding, value)
        return made

    def close(self) -> None:
        """Free the model."""
        self._raw.close()

    def _run_rows(self, held: Mapping[str, Array], rows: int) -> dict[str, Array]:
        if rows == 1:
            return self._raw.run(held)
        split = {binding.artifact.name for binding in self._inputs if _needs_rows(binding)}
        found: dict[str, Array] = {}
        for i in range(rows):
            answer = self._raw.run({n: value[i : i + 1] if n in split else value for n, value in held.items()})
            if not found:
                found = {name: np.empty((rows, *value.shape[1:]), value.dtype) for name, value in answer.items()}
            for name, value in answer.items():
                found[name][i : i + 1] = value
        return found


def check_inputs(specs: Sequence[TensorSpec], values: Mapping[str, Array]) -> int | None:
    """The number of rows in `values`, or None where no input has a free batch.

    Raises:
        DataError: an input is missing, unknown, of the wrong shape or dtype, or has another number of rows than the
            others; names all faults.
    """
    found = None
    if len(values) != len(specs):
        return _judge_inputs(specs, values)
    for spec in specs:  # on the way of every request, so the words for what is wrong are found elsewhere
        value = values.get(spec.name)
        if value is None or not spec.fits(value):
            return _judge_inputs(specs, values)
        if spec.shape and spec.shape[0] is None:
            rows = value.shape[0]
            if found is not None and found != rows:
                return _judge_inputs(specs, values)
            found = rows
    return found


def _judge_inputs(specs: Sequence[TensorSpec], values: Mapping[str, Array]) -> int | None:
    known = {spec.name for spec in specs}
    faults = [f"input {name!r} is unknown, expected {', '.join(sorted(known))}" for name in values if name not in known]
    rows: dict[str, int] = {}
    for spec in specs:
        if spec.name not in values:
            faults.append(f"input {spec.name!r} is missing")
            continue
        found = spec.faults(values[spec.name])
        faults += found
        if not found and spec.shape and spec.shape[0] is None:
            rows[spec.name] = values[spec.name].shape[0]
    if len(set(rows.values())) > 1:
        faults.append("inputs differ in rows: " + ", ".join(f"{name} has {n}" for name, n in rows.items()))
    if faults:
        raise DataError("; ".join(faults))
    return next(iter(rows.values()), None)


def to_artifact(binding: Binding, value: Array) -> Array:
    """`value` as the artifact takes it: axes in its order, quantized or cast to its dtype.

    Raises:
        DataError: `value` holds NaN and the artifact's integers cannot.
    """
    if binding.permute:
        value = value.transpose(binding.permute)
    dtype = binding.artifact.dtype.numpy
    if binding.scale is not None:
        if np.isnan(value).any():
            raise DataError(f"{binding.spec.name}: holds NaN, which an {dtype.name} model cannot take")
        limits = np.iinfo(dtype)
        value = np.clip(np.rint(value / np.float32(binding.scale)) + binding.zero_point, limits.min, limits.max)
    return np.asarray(value, dtype=dtype, order="C")


def to_logical(binding: Binding, value: Array) -> Array:
    """What the artifact answered as clients see it: dequantized or cast, axes in the source model's order."""
    return np.asarray(_real(binding, value), dtype=binding.spec.dtype.numpy, order="C")


def _real(binding: Binding, value: Array) -> Array:
    """As `to_logical`, in whatever dtype and order in memory it comes about."""
    if binding.scale is not None:
        value = (value.astype(np.float32) - np.float32(binding.zero_point)) * np.float32(binding.scale)
    return value.transpose(np.argsort(binding.permute)) if binding.permute else value


def _joined(binding: Binding, found: Mapping[str, Array]) -> Array:
    """The logical tensor from its parts, each as the artifact answered it.

    Raises:
        RuntimeLoadError: they are not of the sizes that the bindings say.
    """
    assert isinstance(binding.joined, Joined)
    axis, parts = binding.joined.axis, binding.joined.parts
    values = [_real(part, found[part.artifact.name]) for part in parts]
    shape = (*values[0].shape[:axis], binding.spec.shape[axis] or 0, *values[0].shape[axis + 1 :])
    fitting = [(*shape[:axis], part.spec.shape[axis], *shape[axis + 1 :]) for part in parts]
    if [value.shape for value in values] != fitting:
        told = ", ".join(f"{part.artifact.name} {list(found[part.artifact.name].shape)}" for part in parts)
        raise RuntimeLoadError(
            f"the artifact answered parts of {binding.spec.name} that do not fit together: {told}, expected "
            f"{binding.spec.shape_text} when joined along axis {axis}"
        )
    whole = np.empty(shape, binding.spec.dtype.numpy)
    ends = np.cumsum([value.shape[axis] for value in values])
    for value, place in zip(values, np.split(whole, ends[:-1], axis), strict=True):
        place[...] = value
    return whole


def _plan(bindings: Sequence[Binding]) -> list[tuple[str, str, bool, Binding]]:
    """Logical name, the artifact's name, whether its tensor is the logical one; looked up once for all requests."""
    return [(one.spec.name, one.artifact.name, _is_plain(one), one) for one in bindings]


def _is_plain(binding: Binding) -> bool:
    """The artifact's tensor is the logical one."""
    return binding.spec.dtype is binding.artifact.dtype and binding.scale is None and not binding.permute


def _needs_rows(binding: Binding) -> bool:
    spec, artifact = binding.spec.shape, binding.artifact.shape
    return bool(spec) and bool(artifact) and spec[0] is None and artifact[0] == 1


def _empty(spec: TensorSpec) -> Array:
    return np.zeros([0 if size is None else size for size in spec.shape], dtype=spec.dtype.numpy)


def _artifact_faults(kind: str, found: Sequence[TensorSpec], bindings: Sequence[Binding]) -> list[str]:
    have = {spec.name: spec for spec in found}
    faults = []
    for binding in bindings:
        want = binding.artifact
        if want.name not in have:
            faults.append(f"{kind} {want.name!r} is not in it, found {', '.join(have) or 'none'}")
        elif have[want.name].dtype is not want.dtype:
            faults.append(f"{kind} {want.name}: dtype is {have[want.name].dtype.value}, expected {want.dtype.value}")
        elif not _same_shape(have[want.name].shape, want.shape, exact=kind == "input"):
            faults.append(f"{kind} {want.name}: shape is {have[want.name].shape_text}, expected {want.shape_text}")
    if kind == "input":
        bound = {binding.artifact.name for binding in bindings}
        faults += [f"input {name!r} of the artifact is bound to nothing" for name in have if name not in bound]
    return faults


def _same_shape(found: Sequence[int | None], want: Sequence[int | None], *, exact: bool) -> bool:
    """Outputs may have axes that the runtime cannot tell before it has run."""
    loose = not exact
    return len(found) == len(want) and all(
        f == w or (loose and None in (f, w)) for f, w in zip(found, want, strict=True)
    )


def _batch_faults(inputs: Sequence[Binding], outputs: Sequence[Binding], by_row: bool) -> list[str]:
    faults = []
    for binding in (*inputs, *outputs, *(part for one in outputs for part in one.parts if part is not one)):
        spec, artifact = binding.spec.shape, binding.artifact.shape
        if len(spec) != len(artifact):
            faults.append(f"{binding.spec.name}: {len(spec)} axes are held by {len(artifact)}")
        elif spec and spec[0] is None and artifact[0] not in (None, 1):
            faults.append(f"{binding.spec.name}: a free batch is held by a batch of {artifact[0]}, expected 1 or any")
        elif spec and spec[0] is None and binding.permute and binding.permute[0] != 0:
            faults.append(f"{binding.spec.name}: permute {list(binding.permute)} moves the batch axis")
    if by_row:
        faults += [
            f"output {binding.spec.name} has no free batch to join the rows of a batch-1 artifact"
            for binding in outputs
            if not binding.spec.shape or binding.spec.shape[0] is not None
        ]
        faults += [
            f"input {binding.spec.name} has a free batch beside one that is held by a batch of 1"
            for binding in inputs
            if binding.spec.shape and binding.spec.shape[0] is None and binding.artifact.shape[:1] == (None,)
        ]
    return faults
