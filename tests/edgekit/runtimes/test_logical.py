"""LogicalRuntime applies bindings over a runtime in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.bundle.bindings import Binding, Joined
from edgekit.errors import DataError, RuntimeLoadError
from edgekit.runtimes import LogicalRuntime
from edgekit.tensors import Array, DType, TensorSpec


class Echo:
    """RawRuntime that returns its inputs under output names and records them."""

    provider = "Echo"

    def __init__(self, inputs: dict[str, tuple[DType, tuple[int | None, ...]]]) -> None:
        self.inputs = tuple(TensorSpec(name, *spec) for name, spec in inputs.items())
        self.outputs = tuple(TensorSpec(name + "_out", *spec) for name, spec in inputs.items())
        self.seen: list[dict[str, Array]] = []
        self.closed = False
        self.quantization: dict[str, tuple[float, int]] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.seen.append(dict(inputs))
        return {name + "_out": value.copy() for name, value in inputs.items()}

    def close(self) -> None:
        self.closed = True


def bound(
    raw: Echo, logical: tuple[int | None, ...], dtype: DType = DType.FLOAT32, **how: object
) -> tuple[Binding, Binding]:
    return (
        Binding(TensorSpec("image", dtype, logical), raw.inputs[0], **how),  # type: ignore[arg-type]
        Binding(TensorSpec("answer", dtype, logical), raw.outputs[0], **how),  # type: ignore[arg-type]
    )


def make(raw: Echo, logical: tuple[int | None, ...], dtype: DType = DType.FLOAT32, **how: object) -> LogicalRuntime:
    a, b = bound(raw, logical, dtype, **how)
    return LogicalRuntime(raw, [a], [b])


def test_layout_is_permuted_on_the_way_in_and_back_on_the_way_out() -> None:
    """A client's NHWC tensor reaches an NCHW artifact as NCHW and comes back as NHWC."""
    raw = Echo({"a": (DType.FLOAT32, (None, 3, 4, 5))})
    x = np.random.default_rng(0).random((2, 4, 5, 3), np.float32)
    found = make(raw, (None, 4, 5, 3), permute=(0, 3, 1, 2)).run({"image": x})
    np.testing.assert_array_equal(raw.seen[0]["a"], x.transpose(0, 3, 1, 2))
    assert raw.seen[0]["a"].flags.c_contiguous
    np.testing.assert_array_equal(found["answer"], x)


def test_floats_are_quantized_with_rounding_and_clipping() -> None:
    """An int8 artifact gets round(x / scale) + zero point within its limits, and floats come back."""
    raw = Echo({"a": (DType.INT8, (None, 4))})
    x = np.array([[0.0, 0.26, -100.0, 100.0]], np.float32)
    found = make(raw, (None, 4), scale=0.5, zero_point=-3).run({"image": x})
    assert raw.seen[0]["a"].tolist() == [[-3, -2, -128, 127]]
    assert found["answer"].dtype == np.float32
    np.testing.assert_allclose(found["answer"], [[0.0, 0.5, -62.5, 65.0]])


def test_nan_is_refused_by_an_integer_artifact() -> None:
    """An integer cannot represent NaN, so this is an error."""
    raw = Echo({"a": (DType.INT8, (None, 1))})
    with pytest.raises(DataError, match="image: contains NaN"):
        make(raw, (None, 1), scale=0.5).run({"image": np.array([[np.nan]], np.float32)})


def test_dtypes_are_cast_and_come_back() -> None:
    """A float16 artifact gets float16 and its output is float32 for the client."""
    raw = Echo({"a": (DType.FLOAT16, (None, 2))})
    found = make(raw, (None, 2)).run({"image": np.ones((3, 2), np.float32)})
    assert raw.seen[0]["a"].dtype == np.float16
    assert found["answer"].dtype == np.float32


def test_a_batch_1_artifact_runs_row_by_row() -> None:
    """Five rows are five runs in order, and the outputs are joined."""
    raw = Echo({"a": (DType.FLOAT32, (1, 2))})
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = make(raw, (None, 2)).run({"image": x})
    assert [run["a"].tolist() for run in raw.seen] == [[row.tolist()] for row in x]
    np.testing.assert_array_equal(found["answer"], x)


def test_no_rows_give_empty_answers_without_a_run() -> None:
    """A batch of 0 rows gives arrays with 0 rows."""
    raw = Echo({"a": (DType.FLOAT32, (1, 2))})
    assert make(raw, (None, 2)).run({"image": np.zeros((0, 2), np.float32)})["answer"].shape == (0, 2)
    assert raw.seen == []


def test_every_fault_of_the_inputs_is_named() -> None:
    """One error has a wrong dtype, a wrong shape and an unknown name, with found and expected values."""
    raw = Echo({"a": (DType.FLOAT32, (None, 2))})
    with pytest.raises(DataError) as caught:
        make(raw, (None, 2)).run({"image": np.zeros((1, 3), np.int64), "other": np.zeros(1)})
    for part in ("dtype is int64, expected float32", "[1, 3], expected [any, 2]", "'other' is unknown"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="'image' is missing"):
        make(raw, (None, 2)).run({})


def test_inputs_with_different_rows_are_refused() -> None:
    """All inputs must have the same number of rows."""
    raw = Echo({"a": (DType.FLOAT32, (1, 2)), "b": (DType.FLOAT32, (1, 2))})
    specs = [Binding(TensorSpec(n, DType.FLOAT32, (None, 2)), s) for n, s in zip("pq", raw.inputs, strict=True)]
    outs = [Binding(TensorSpec(n, DType.FLOAT32, (None, 2)), s) for n, s in zip("rs", raw.outputs, strict=True)]
    runtime = LogicalRuntime(raw, specs, outs)
    with pytest.raises(DataError, match="p has 2, q has 3"):
        runtime.run({"p": np.zeros((2, 2), np.float32), "q": np.zeros((3, 2), np.float32)})


def test_an_artifact_that_is_not_what_the_manifest_says_is_refused_and_closed() -> None:
    """The error has every difference in names, dtypes and shapes."""
    raw = Echo({"a": (DType.INT8, (1, 2)), "extra": (DType.INT8, (1,))})
    spec = TensorSpec("image", DType.FLOAT32, (None, 2))
    with pytest.raises(RuntimeLoadError) as caught:
        LogicalRuntime(
            raw,
            [Binding(spec, TensorSpec("a", DType.FLOAT32, (1, 2)))],
            [Binding(spec, TensorSpec("z", DType.FLOAT32, (1, 2)))],
        )
    for part in ("input a: dtype is int8, expected float32", "output 'z' is missing", "'extra' of the artifact"):
        assert part in str(caught.value)
    assert raw.closed


def test_a_free_batch_over_a_fixed_batch_of_eight_is_refused() -> None:
    """A free logical batch needs a free batch or a batch of 1 in the artifact."""
    raw = Echo({"a": (DType.FLOAT32, (8, 2))})
    with pytest.raises(RuntimeLoadError, match="the artifact's is 8"):
        make(raw, (None, 2))


class Parts:
    """RawRuntime that returns its input in two parts: the second quantized, channel-first, and scaled by `scale`."""

    provider = "Parts"

    def __init__(self, batch: int | None, size: int = 3) -> None:
        self.inputs = (TensorSpec("a", DType.FLOAT32, (batch, 4, 5)),)
        self.outputs = (
            TensorSpec("o0", DType.FLOAT32, (batch, 4, 2)),
            TensorSpec("o1", DType.INT8, (batch, size, 4)),
            TensorSpec("a_too", DType.FLOAT32, (batch, 4, 5)),
        )
        self.runs = 0
        self.closed = False
        self.quantization: dict[str, tuple[float, int]] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        x = inputs["a"]
        second = (np.rint(x[..., 2:] / np.float32(0.25)) - 3).astype(np.int8).transpose(0, 2, 1)
        return {"o0": x[..., :2].copy(), "o1": np.ascontiguousarray(second), "a_too": x}

    def close(self) -> None:
        self.closed = True


def in_parts(raw: Parts) -> LogicalRuntime:
    batch = raw.inputs[0].shape[0]
    specs = [TensorSpec(name, DType.FLOAT32, (None, 4, size)) for name, size in (("y.0", 2), ("y.1", 3))]
    one = Binding(specs[0], TensorSpec("o0", DType.FLOAT32, (batch, 4, 2)))
    other = Binding(specs[1], TensorSpec("o1", DType.INT8, (batch, 3, 4)), (0, 2, 1), 0.25, -3)
    whole = TensorSpec("y", DType.FLOAT32, (None, 4, 5))
    held = TensorSpec("o0+o1", DType.FLOAT32, (batch, 4, 5))
    outputs = [
        Binding(whole, held, joined=Joined(2, (one, other))),
        Binding(TensorSpec("same", DType.FLOAT32, (None, 4, 5)), raw.outputs[2]),
    ]
    return LogicalRuntime(raw, [Binding(TensorSpec("x", DType.FLOAT32, (None, 4, 5)), raw.inputs[0])], outputs)


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("rows", [1, 3])
def test_an_output_in_parts_is_one_for_clients(batch: int | None, rows: int) -> None:
    """Parts are dequantized, permuted and joined along the axis, row by row for batch 1."""
    raw = Parts(batch)
    runtime = in_parts(raw)
    x = np.random.default_rng(0).integers(-20, 20, (rows, 4, 5)).astype(np.float32) / 4
    found = runtime.run({"x": x})
    assert list(found) == ["y", "same"] == [spec.name for spec in runtime.outputs]
    assert raw.runs == (1 if batch is None else rows)
    assert found["y"].dtype == np.float32
    assert found["y"].flags.c_contiguous
    np.testing.assert_array_equal(found["y"], x)
    assert runtime.run({"x": x[:0]})["y"].shape == (0, 4, 5)


def test_a_part_that_is_not_in_the_artifact_is_named() -> None:
    """The error names the part, and the artifact is closed."""
    raw = Parts(1, size=2)
    with pytest.raises(RuntimeLoadError, match=r"output o1: shape is \[1, 2, 4\], expected \[1, 3, 4\]"):
        in_parts(raw)
    assert raw.closed


def test_parts_of_sizes_that_nobody_promised_are_an_error() -> None:
    """The artifact has unknown sizes before a run, and then returns wrong ones."""
    raw = Parts(None)
    runtime = in_parts(raw)
    raw.run = lambda inputs: {  # type: ignore[method-assign]
        "o0": np.zeros((2, 4, 2), np.float32),
        "o1": np.zeros((2, 3, 5), np.int8),
        "a_too": inputs["a"],
    }
    with pytest.raises(RuntimeLoadError, match=r"o1 \[2, 3, 5\], expected \[any, 4, 5\] when joined along axis 2"):
        runtime.run({"x": np.zeros((2, 4, 5), np.float32)})


def runtime_of(raw: Echo, inputs: list[Binding], outputs: list[Binding] | None = None) -> LogicalRuntime:
    """A runtime whose outputs have the layout of the inputs that reach the artifact."""
    read = [one for one in inputs if one.in_artifact]
    made = [
        Binding(TensorSpec(f"{one.spec.name}_out", one.spec.dtype, one.spec.shape), raw.outputs[i], one.permute)
        for i, one in enumerate(read)
    ]
    return LogicalRuntime(raw, inputs, outputs or made)


@pytest.mark.parametrize("batch", [None, 1])
def test_batch_may_be_another_axis_of_the_logical_tensor(batch: int | None) -> None:
    """(T, N, C) reaches the artifact with its batch first, whole or row by row, and comes back as (T, N, C)."""
    raw = Echo({"a": (DType.FLOAT32, (batch, 4, 2))})
    x = np.random.default_rng(0).random((4, 3, 2), np.float32)
    spec = TensorSpec("x", DType.FLOAT32, (4, None, 2))
    runtime = runtime_of(raw, [Binding(spec, raw.inputs[0], (1, 0, 2))])
    np.testing.assert_array_equal(runtime.run({"x": x})["x_out"], x)
    assert [one["a"].shape for one in raw.seen] == ([(3, 4, 2)] if batch is None else [(1, 4, 2)] * 3)
    assert runtime.run({"x": x[:, :0]})["x_out"].shape == (4, 0, 2)


def test_batches_of_all_inputs_must_agree_wherever_they_stand() -> None:
    """Three rows along axis 1 and two along axis 0 are an error with both."""
    raw = Echo({"a": (DType.FLOAT32, (None, 2)), "h": (DType.FLOAT32, (None, 1, 2))})
    inputs = [
        Binding(TensorSpec("x", DType.FLOAT32, (None, 2)), raw.inputs[0]),
        Binding(TensorSpec("h", DType.FLOAT32, (1, None, 2)), raw.inputs[1], (1, 0, 2)),
    ]
    runtime = runtime_of(raw, inputs)
    with pytest.raises(DataError, match="x has 2, h has 3"):
        runtime.run({"x": np.zeros((2, 2), np.float32), "h": np.zeros((1, 3, 2), np.float32)})


def test_tensor_without_a_batch_gets_the_first_axis_of_the_artifact() -> None:
    """An image without a batch, and a scalar, reach an artifact whose first axis is 1."""
    raw = Echo({"a": (DType.FLOAT32, (1, 4, 5, 3)), "s": (DType.FLOAT32, (1,))})
    inputs = [
        Binding(TensorSpec("x", DType.FLOAT32, (3, 4, 5)), raw.inputs[0], (1, 2, 0)),
        Binding(TensorSpec("gain", DType.FLOAT32, ()), raw.inputs[1]),
    ]
    x, gain = np.random.default_rng(0).random((3, 4, 5), np.float32), np.float32(2.0)
    found = runtime_of(raw, inputs).run({"x": x, "gain": np.asarray(gain)})
    np.testing.assert_array_equal(found["x_out"], x)
    assert found["gain_out"].shape == ()
    assert found["gain_out"] == gain
    np.testing.assert_array_equal(raw.seen[0]["a"], x.transpose(1, 2, 0)[None])


def test_fixed_and_unread_inputs_do_not_reach_the_artifact() -> None:
    """A fixed input may be left out or have its value; another value, or a wrong shape, is an error."""
    raw = Echo({"a": (DType.FLOAT32, (None, 2))})
    rate, unused = TensorSpec("sr", DType.INT64, ()), TensorSpec("unused", DType.FLOAT32, (None, 3))
    inputs = [
        Binding(rate, rate, value=16000),
        Binding(TensorSpec("x", DType.FLOAT32, (None, 2)), raw.inputs[0]),
        Binding(unused, unused, unread=True),
    ]
    runtime = runtime_of(raw, inputs)
    x = np.ones((2, 2), np.float32)
    assert [spec.name for spec in runtime.inputs] == ["sr", "x", "unused"]
    for more in ({}, {"sr": np.array(16000)}, {"unused": np.zeros((2, 3), np.float32)}):
        np.testing.assert_array_equal(runtime.run({"x": x, **more})["x_out"], x)
    assert all(one.keys() == {"a"} for one in raw.seen)
    with pytest.raises(DataError, match="sr: the model is fixed to 16000, and the input holds 8000"):
        runtime.run({"x": x, "sr": np.array(8000)})
    with pytest.raises(DataError, match="sr: shape is"):
        runtime.run({"x": x, "sr": np.array([16000])})


def test_layout_that_moves_the_batch_away_from_the_front_is_refused() -> None:
    """The artifact has the batch first; a binding that says otherwise does not load."""
    raw = Echo({"a": (DType.FLOAT32, (None, 4, 2))})
    with pytest.raises(RuntimeLoadError, match="moves the batch axis 1"):
        runtime_of(raw, [Binding(TensorSpec("x", DType.FLOAT32, (4, None, 2)), raw.inputs[0])])
    raw = Echo({"a": (DType.FLOAT32, (2, 4))})
    with pytest.raises(RuntimeLoadError, match="1 axes, the artifact has 2"):
        runtime_of(raw, [Binding(TensorSpec("x", DType.FLOAT32, (4,)), raw.inputs[0])])


def test_rows_whose_answers_have_other_sizes_are_an_error() -> None:
    """A row with no numbers is not one row of the answer."""

    class Shrinking(Echo):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return {name: value[: int(value[0, 0])] for name, value in super().run(inputs).items()}

    runtime = make(Shrinking({"a": (DType.FLOAT32, (1, 2))}), (None, 2))
    with pytest.raises(RuntimeLoadError, match="size of output a_out depends on the values"):
        runtime.run({"image": np.array([[1, 2], [0, 2]], np.float32)})
