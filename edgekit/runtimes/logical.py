"""LogicalRuntime: runs an artifact with the source model's interface.

Clients use the source's names, dtypes, layout and free batch. The manifest's bindings describe the artifact's tensors:
another axis order, integers with a scale, half precision, a batch of one, an output in several parts. The batch is the
artifact's first axis, wherever the source has it. Inputs that are fixed or unread do not reach the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from edgekit.bundle.bindings import Binding, Joined, layout_faults
from edgekit.errors import DataError, RuntimeLoadError
from edgekit.protocols import Runtime
from edgekit.tensors import Array, TensorSpec


class RawRuntime(Runtime, Protocol):
    """A Runtime whose tensors are the artifact's own."""

    @property
    def quantization(self) -> dict[str, tuple[float, int]]:
        """(scale, zero point) of integer inputs and outputs by name, if the artifact states them."""
        ...


class LogicalRuntime:
    """Runtime that applies bindings to the artifact's own runtime.

    Args:
        raw: The artifact's own runtime; `close` closes it too.
        inputs, outputs: Bindings of logical tensors to the artifact's.

    Raises:
        RuntimeLoadError: The artifact's tensors do not match the bindings; `raw` is closed, and all faults are named.
    """

    def __init__(self, raw: RawRuntime, inputs: Sequence[Binding], outputs: Sequence[Binding]) -> None:
        self._raw = raw
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._input_specs = tuple(binding.spec for binding in self._inputs)  # read several times per request
        self._output_specs = tuple(binding.spec for binding in self._outputs)
        self._absent = tuple(binding for binding in self._inputs if not binding.in_artifact)
        read = tuple(binding for binding in self._inputs if binding.in_artifact)
        self._read_specs = tuple(binding.spec for binding in read)
        self._input_plan, self._output_plan = _lookup(read), _lookup(self._outputs)
        self._in_parts = tuple(binding for binding in self._outputs if isinstance(binding.joined, Joined))
        self._by_row = any(_needs_rows(binding) for binding in read)
        faults = [
            *_artifact_faults("input", raw.inputs, read),
            *_artifact_faults("output", raw.outputs, [part for one in self._outputs for part in one.parts]),
            *_batch_faults(read, self._outputs, self._by_row),
        ]
        if faults:
            raw.close()
            raise RuntimeLoadError("the artifact does not match its manifest: " + "; ".join(faults))

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
        """The delegate or provider in use."""
        return self._raw.provider

    @property
    def providers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The requested providers and the providers in use."""
        pair: tuple[tuple[str, ...], tuple[str, ...]] = getattr(self._raw, "providers", ((), (self._raw.provider,)))
        return pair

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; an artifact with batch 1 runs once per row.

        Raises:
            DataError: An input is missing, unknown, or of the wrong shape or dtype; the message names all faults.
            RuntimeLoadError: The runtime failed, or returned parts that cannot be joined.

        A fixed or unread input may be left out. A fixed one with another value is a DataError.
        """
        raw_inputs, rows = self._raw_inputs(inputs)
        if rows == 0:
            return {spec.name: _empty(spec) for spec in self._output_specs}
        raw_outputs = (
            self._run_rows(raw_inputs, rows) if self._by_row and rows is not None else self._raw.run(raw_inputs)
        )
        if self._in_parts:
            raw_outputs = {
                **raw_outputs,
                **{one.artifact.name: _join_parts(one, raw_outputs) for one in self._in_parts},
            }
        outputs = {}
        for name, raw_name, equal, binding in self._output_plan:
            value = raw_outputs[raw_name]
            outputs[name] = value if equal and value.flags.c_contiguous else to_logical(binding, value)
        return outputs

    def artifact_inputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The artifact's own inputs for a call with one row.

        Raises:
            DataError: As `run`.
        """
        return self._raw_inputs(inputs)[0]

    def close(self) -> None:
        """Free the model."""
        self._raw.close()

    def _raw_inputs(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], int | None]:
        """The artifact's own inputs, and the number of rows; no inputs without rows."""
        if self._absent:
            inputs = without_absent(self._absent, inputs)
        rows = check_inputs(self._read_specs, inputs)
        raw_inputs: dict[str, Array] = {}
        if rows == 0:
            return raw_inputs, rows
        for name, raw_name, equal, binding in self._input_plan:
            value = inputs[name]
            ready = equal and value.flags.c_contiguous and value.dtype.isnative  # runtimes read the bytes directly
            raw_inputs[raw_name] = value if ready else to_artifact(binding, value)
        return raw_inputs, rows

    def _run_rows(self, raw_inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        if rows == 1:
            return self._raw.run(raw_inputs)
        split = {binding.artifact.name for binding in self._inputs if _needs_rows(binding)}
        outputs: dict[str, Array] = {}
        for i in range(rows):
            row_outputs = self._raw.run(
                {n: value[i : i + 1] if n in split else value for n, value in raw_inputs.items()}
            )
            if not outputs:
                outputs = {name: np.empty((rows, *value.shape[1:]), value.dtype) for name, value in row_outputs.items()}
            for name, value in row_outputs.items():
                if value.shape != (1, *outputs[name].shape[1:]):
                    raise _varying_size(name, i, value, outputs[name])
                outputs[name][i] = value[0]
        return outputs


def _varying_size(name: str, row: int, value: Array, before: Array) -> RuntimeLoadError:
    return RuntimeLoadError(
        f"the size of output {name} depends on the values of the inputs: row {row} gave {list(value.shape)}, rows "
        f"before it {[1, *before.shape[1:]]}",
        advice="Send one row a call, or convert the model again, cut before what decides the size (--cut).",
    )


def check_inputs(specs: Sequence[TensorSpec], values: Mapping[str, Array]) -> int | None:
    """The number of rows in `values`; None if no input has a free batch.

    Raises:
        DataError: An input is missing, unknown, of the wrong shape or dtype, or has a different number of rows; the
            message names all faults.
    """
    row_count = None
    if len(values) != len(specs):
        return _check_each_input(specs, values)
    for spec in specs:  # fast path of every request; _check_each_input makes the messages
        value = values.get(spec.name)
        if value is None or not spec.fits(value):
            return _check_each_input(specs, values)
        shape = spec.shape
        if None in shape:  # mostly as the first size, where both searches end at once
            rows = value.shape[shape.index(None)]
            if row_count is not None and row_count != rows:
                return _check_each_input(specs, values)
            row_count = rows
    return row_count


def _check_each_input(specs: Sequence[TensorSpec], values: Mapping[str, Array]) -> int | None:
    known = {spec.name for spec in specs}
    faults = [f"input {name!r} is unknown, expected {', '.join(sorted(known))}" for name in values if name not in known]
    rows: dict[str, int] = {}
    for spec in specs:
        if spec.name not in values:
            faults.append(f"input {spec.name!r} is missing")
            continue
        input_faults = spec.faults(values[spec.name])
        faults += input_faults
        if not input_faults and spec.batch_axis is not None:
            rows[spec.name] = values[spec.name].shape[spec.batch_axis]
    if len(set(rows.values())) > 1:
        faults.append("inputs differ in rows: " + ", ".join(f"{name} has {n}" for name, n in rows.items()))
    if faults:
        raise DataError("; ".join(faults))
    return next(iter(rows.values()), None)


def without_absent(absent: Sequence[Binding], values: Mapping[str, Array]) -> dict[str, Array]:
    """The values that reach the artifact: without those of the bindings `absent`, which are checked.

    Raises:
        DataError: A fixed input has another value, or one of them does not fit its spec; the message names all faults.
    """
    faults, left = [], dict(values)
    for binding in absent:
        name = binding.spec.name
        if name not in left:
            continue
        value = left.pop(name)
        wrong = binding.spec.faults(value)
        if not wrong and binding.value is not msgspec.UNSET and not np.all(value == binding.value):
            found = value[value != binding.value].ravel()[0]
            wrong = [f"{name}: the model is fixed to {binding.value}, and the input holds {found}"]
        faults += wrong
    if faults:
        raise DataError("; ".join(faults))
    return left


def to_artifact(binding: Binding, value: Array) -> Array:
    """Convert a logical tensor to the artifact's: permuted, and quantized or cast to its dtype.

    Raises:
        DataError: `value` contains NaN, which integers cannot represent.
    """
    if binding.permute:
        value = value.transpose(binding.permute)
    dtype = binding.artifact.dtype.numpy
    if binding.scale is not None:
        if np.isnan(value).any():
            raise DataError(f"{binding.spec.name}: contains NaN, which an {dtype.name} model cannot take")
        limits = np.iinfo(dtype)
        value = np.clip(np.rint(value / np.float32(binding.scale)) + binding.zero_point, limits.min, limits.max)
    return np.asarray(value[np.newaxis] if binding.adds_axis else value, dtype=dtype, order="C")


def to_logical(binding: Binding, value: Array) -> Array:
    """Convert an output of the artifact to the logical tensor: dequantized or cast, axes in the source's order."""
    return np.asarray(_dequantized(binding, value), dtype=binding.spec.dtype.numpy, order="C")


def _dequantized(binding: Binding, value: Array) -> Array:
    """As `to_logical`, without conversion of dtype and memory order."""
    if binding.scale is not None:
        value = (value.astype(np.float32) - np.float32(binding.zero_point)) * np.float32(binding.scale)
    if binding.adds_axis:
        value = value[0]
    return value.transpose(np.argsort(binding.permute)) if binding.permute else value


def _join_parts(binding: Binding, raw_outputs: Mapping[str, Array]) -> Array:
    """Join the parts of an output, as returned by the artifact, to the logical tensor.

    Raises:
        RuntimeLoadError: The parts do not have the sizes of the bindings.
    """
    assert isinstance(binding.joined, Joined)
    axis, parts = binding.joined.axis, binding.joined.parts
    values = [_dequantized(part, raw_outputs[part.artifact.name]) for part in parts]
    shape = (*values[0].shape[:axis], binding.spec.shape[axis] or 0, *values[0].shape[axis + 1 :])
    fitting = [(*shape[:axis], part.spec.shape[axis], *shape[axis + 1 :]) for part in parts]
    if [value.shape for value in values] != fitting:
        shapes = ", ".join(f"{part.artifact.name} {list(raw_outputs[part.artifact.name].shape)}" for part in parts)
        raise RuntimeLoadError(
            f"the artifact returned parts of {binding.spec.name} that cannot be joined: {shapes}, expected "
            f"{binding.spec.shape_text} when joined along axis {axis}"
        )
    whole = np.empty(shape, binding.spec.dtype.numpy)
    ends = np.cumsum([value.shape[axis] for value in values])
    for value, part_view in zip(values, np.split(whole, ends[:-1], axis), strict=True):
        part_view[...] = value
    return whole


def _lookup(bindings: Sequence[Binding]) -> list[tuple[str, str, bool, Binding]]:
    """Logical name, artifact name, True if both tensors are equal, and the binding; made once for all requests."""
    return [(one.spec.name, one.artifact.name, _is_equal(one), one) for one in bindings]


def _is_equal(binding: Binding) -> bool:
    """True if the artifact's tensor equals the logical one."""
    same_axes = not binding.permute and not binding.adds_axis
    return binding.spec.dtype is binding.artifact.dtype and binding.scale is None and same_axes


def _needs_rows(binding: Binding) -> bool:
    return None in binding.spec.shape and binding.artifact.shape[:1] == (1,)


def _empty(spec: TensorSpec) -> Array:
    return np.zeros([0 if size is None else size for size in spec.shape], dtype=spec.dtype.numpy)


def _artifact_faults(kind: str, specs: Sequence[TensorSpec], bindings: Sequence[Binding]) -> list[str]:
    have = {spec.name: spec for spec in specs}
    faults = []
    for binding in bindings:
        want = binding.artifact
        if want.name not in have:
            faults.append(f"{kind} {want.name!r} is missing, found {', '.join(have) or 'none'}")
        elif have[want.name].dtype is not want.dtype:
            faults.append(f"{kind} {want.name}: dtype is {have[want.name].dtype.value}, expected {want.dtype.value}")
        elif not _same_shape(have[want.name].shape, want.shape, exact=kind == "input"):
            faults.append(f"{kind} {want.name}: shape is {have[want.name].shape_text}, expected {want.shape_text}")
    if kind == "input":
        bound = {binding.artifact.name for binding in bindings}
        faults += [f"input {name!r} of the artifact has no binding" for name in have if name not in bound]
    return faults


def _same_shape(actual: Sequence[int | None], want: Sequence[int | None], *, exact: bool) -> bool:
    """Compare shapes; axes of outputs can be unknown before the first run."""
    loose = not exact
    return len(actual) == len(want) and all(
        f == w or (loose and None in (f, w)) for f, w in zip(actual, want, strict=True)
    )


def _batch_faults(inputs: Sequence[Binding], outputs: Sequence[Binding], by_row: bool) -> list[str]:
    every = (*inputs, *outputs, *(part for one in outputs for part in one.parts if part is not one))
    faults = [fault for binding in every for fault in layout_faults(binding)]
    if by_row:
        faults += [
            f"output {binding.spec.name} has no free batch to join the rows of a batch-1 artifact"
            for binding in outputs
            if None not in binding.spec.shape and not binding.adds_axis
        ]
        faults += [
            f"input {binding.spec.name} has a free batch in the artifact, where another input has a batch of 1"
            for binding in inputs
            if None in binding.spec.shape and binding.artifact.shape[:1] == (None,)
        ]
    return faults
