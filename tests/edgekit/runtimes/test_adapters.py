"""LiteRT and ONNX Runtime adapters on small real models."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import Binding, Manifest
from edgekit.errors import DataError, ManifestError, RuntimeLoadError
from edgekit.runtimes import LogicalRuntime, open_runtime
from edgekit.runtimes.litert import BUILTIN, REFERENCE, LiteRTRuntime
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.runtimes.providers import CPU, CUDA, Acceleration
from edgekit.tensors import DType
from tests.simulators.small_models import litert_bundle, litert_model, onnx_bundle, onnx_model, softmax

ROWS = np.array([[1, 2, 3], [0.5, 0, -1], [4, 0, 0]], np.float32)


def _litert(folder: Path) -> Manifest:
    return litert_bundle(folder)


def _litert_int8(folder: Path) -> Manifest:
    return litert_bundle(folder, quantized=True)


def _onnx_batch_1(folder: Path) -> Manifest:
    return onnx_bundle(folder)


def _onnx_free_batch(folder: Path) -> Manifest:
    return onnx_bundle(folder, batch=None)


@pytest.mark.parametrize("make", [_litert, _litert_int8, _onnx_batch_1, _onnx_free_batch])
def test_every_bundle_offers_the_source_interface(make, tmp_path: Path) -> None:
    """Any number of float rows gives float outputs, and the self-test passes, for every artifact."""
    manifest = make(tmp_path)
    runtime = open_runtime(manifest, tmp_path)
    assert [(spec.name, spec.dtype, spec.shape) for spec in runtime.inputs] == [("x", DType.FLOAT32, (None, 3))]
    for rows in (ROWS, ROWS[:1]):
        np.testing.assert_allclose(runtime.run({"x": rows})["scores"], softmax(rows), atol=0.01)
    assert self_test(runtime, manifest, (tmp_path / "golden.npz").read_bytes()).passed
    runtime.close()
    with pytest.raises(RuntimeLoadError, match="closed"):
        runtime.run({"x": ROWS})


def test_litert_names_tensors_by_the_signature_and_else_by_the_graph(tmp_path: Path) -> None:
    """The names are those of the signature, or of the graph without one."""
    for signature, names in ((True, ("x", "scores")), (False, ("graph_x", "graph_scores"))):
        path = tmp_path / "m.tflite"
        path.write_bytes(litert_model(signature=signature))
        runtime = LiteRTRuntime(path)
        assert (runtime.inputs[0].name, runtime.outputs[0].name) == names
        np.testing.assert_allclose(runtime.run({names[0]: ROWS[:1]})[names[1]], softmax(ROWS[:1]), atol=1e-6)


def test_litert_states_the_quantization_of_integer_tensors(tmp_path: Path) -> None:
    """Scale and zero point by name for an int8 file; empty for a float file."""
    path = tmp_path / "m.tflite"
    path.write_bytes(litert_model(quantized=True))
    found = LiteRTRuntime(path).quantization
    assert found["x"] == (pytest.approx(0.1), 0)
    assert found["scores"] == (pytest.approx(1 / 256), -128)
    path.write_bytes(litert_model())
    assert LiteRTRuntime(path).quantization == {}


def test_litert_kernels_can_be_chosen_to_compare_with(tmp_path: Path) -> None:
    """Without the delegate, the same file runs on built-in or reference kernels with provider CPU."""
    path = tmp_path / "m.tflite"
    path.write_bytes(litert_model())
    assert LiteRTRuntime(path).provider == "XNNPACK"
    for kernels in (BUILTIN, REFERENCE):
        runtime = LiteRTRuntime(path, kernels=kernels)
        assert runtime.provider == "CPU"
        np.testing.assert_allclose(runtime.run({"x": ROWS[:1]})["scores"], softmax(ROWS[:1]), atol=1e-6)


def test_litert_answers_are_copies(tmp_path: Path) -> None:
    """The next run does not change earlier outputs."""
    path = tmp_path / "m.tflite"
    path.write_bytes(litert_model())
    runtime = LiteRTRuntime(path)
    first = runtime.run({"x": ROWS[:1]})["scores"]
    kept = first.copy()
    runtime.run({"x": ROWS[1:2]})
    np.testing.assert_array_equal(first, kept)


def test_litert_says_whether_xnnpack_took_the_graph(tmp_path: Path) -> None:
    """XNNPACK runs a float softmax and not an int8 one; `provider` says which."""
    path = tmp_path / "m.tflite"
    path.write_bytes(litert_model())
    assert LiteRTRuntime(path).provider == "XNNPACK"
    path.write_bytes(litert_model(quantized=True))
    assert LiteRTRuntime(path).provider == "CPU"


def test_onnx_takes_bytes_and_says_its_provider() -> None:
    """A model from bytes runs on the CPU provider."""
    runtime = OnnxRuntime(onnx_model(gain=2.0, tag=7.0))
    assert runtime.provider == "CPUExecutionProvider"
    found = runtime.run({"x": ROWS})
    np.testing.assert_allclose(found["scores"], softmax(ROWS, 2.0), atol=1e-6)
    np.testing.assert_allclose(found["tag"], 7.0, atol=1e-5)


def test_a_provider_that_is_missing_is_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    """With a missing provider, the model runs on the CPU, logs a warning, and `provider` says so."""
    with caplog.at_level(logging.WARNING):
        runtime = OnnxRuntime(onnx_model(), providers=("QNNExecutionProvider", "CPUExecutionProvider"))
    assert runtime.provider == "CPUExecutionProvider"
    assert runtime.missing_providers == ("QNNExecutionProvider",)
    assert "requested QNNExecutionProvider and runs on CPUExecutionProvider" in caplog.text


def test_a_provider_that_is_required_and_missing_is_an_error(tmp_path: Path) -> None:
    """The error has the required and the available providers; both are also in `providers`."""
    manifest = onnx_bundle(tmp_path)
    wanted = Acceleration(providers=(CUDA, CPU), required=True)
    with pytest.raises(RuntimeLoadError, match=r"requires CUDAExecutionProvider, ONNX Runtime has .*CPU") as e:
        open_runtime(manifest, tmp_path, acceleration=wanted)
    assert "require_providers" in e.value.advice
    runtime = open_runtime(manifest, tmp_path, acceleration=msgspec.structs.replace(wanted, required=False))
    assert runtime.providers == ((CUDA, CPU), (CPU,))
    assert open_runtime(litert_bundle(tmp_path / "l"), tmp_path / "l").providers == ((), ("XNNPACK",))
    assert open_runtime(manifest, tmp_path, acceleration=Acceleration(providers=(CPU,), required=True)).provider == CPU


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "missing"])
@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_a_damaged_artifact_is_a_load_error_that_names_the_file(kind: str, damage: str, tmp_path: Path) -> None:
    """The runtime raises an error for a damaged file, and the process survives."""
    path = tmp_path / f"model.{kind}"
    whole = litert_model() if kind == "litert" else onnx_model()
    data = {"empty": b"", "garbage": bytes(range(256)) * 8, "truncated": whole[: len(whole) // 2]}
    if damage in data:
        path.write_bytes(data[damage])
    with pytest.raises(RuntimeLoadError, match=path.name):
        LiteRTRuntime(path) if kind == "litert" else OnnxRuntime(path)


@pytest.mark.parametrize("make", [_litert, _onnx_batch_1])
def test_a_tensor_is_its_numbers_however_they_lie_in_memory(make, tmp_path: Path) -> None:
    """Other byte orders and slices of larger arrays give the same outputs."""
    runtime = open_runtime(make(tmp_path), tmp_path)
    expected = runtime.run({"x": ROWS})["scores"]
    for same in (ROWS.astype(">f4"), np.asfortranarray(ROWS), np.repeat(ROWS, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(runtime.run({"x": same})["scores"], expected)
    runtime.close()


def test_wrong_inputs_of_a_raw_runtime_are_data_errors(tmp_path: Path) -> None:
    """Both adapters report wrong inputs, found by themselves or by the library."""
    path = tmp_path / "m.tflite"
    path.write_bytes(litert_model())
    for runtime in (LiteRTRuntime(path), OnnxRuntime(onnx_model())):
        with pytest.raises(DataError, match="expected float32"):
            runtime.run({"x": ROWS[:1].astype(np.int32)})
        with pytest.raises(DataError, match="inputs are y, expected x"):
            runtime.run({"y": ROWS[:1]})


@pytest.mark.parametrize("shape", [(), (1,), (2, None)])
def test_onnx_takes_no_input_of_another_shape_or_dtype(shape: tuple[int | None, ...]) -> None:
    """Missing and additional inputs are refused too."""
    sizes = [size or "n" for size in shape]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    runtime = OnnxRuntime(model.SerializeToString())
    fitting = np.ones([size or 5 for size in shape], np.float32)
    np.testing.assert_array_equal(runtime.run({"x": fitting})["y"], fitting)
    for other in ((), (0,), (1,), (2,), (3, 5), (2, 5, 1)):
        if other != shape:
            with pytest.raises(DataError, match="x: shape is"):
                runtime.run({"x": np.ones(other, np.float32)})
    for dtype in (np.float64, np.int32, np.bool_, object):
        with pytest.raises(DataError, match="x: dtype is"):
            runtime.run({"x": fitting.astype(dtype)})
    for inputs in ({}, {"x": fitting, "z": fitting}):
        with pytest.raises(DataError, match="inputs are"):
            runtime.run(inputs)


def test_scalars_stay_scalars() -> None:
    """An input and an output without axes keep no axes through the bindings."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    raw = OnnxRuntime(model.SerializeToString())
    bindings = [Binding(spec, spec) for spec in (*raw.inputs, *raw.outputs)]
    found = LogicalRuntime(raw, bindings[:1], bindings[1:]).run({"x": np.array(2, np.float32)})["y"]
    assert (found.shape, float(found)) == ((), 2.0)


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    """The error names the two supported runtimes."""
    manifest = onnx_bundle(tmp_path)
    with pytest.raises(ManifestError, match="'litert' or 'onnxruntime'"):
        open_runtime(msgspec.structs.replace(manifest, runtime="tvm"), tmp_path)
