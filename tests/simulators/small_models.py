"""Small real models and bundles, made in milliseconds and without TensorFlow.

Every model has the input ``x`` (N, 3) float32 and the output ``scores`` (N, 3), the softmax of ``gain * x``. ONNX
models also have ``tag`` (N, 1), a constant that identifies a version.
"""

from __future__ import annotations

import random
import string
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import (
    MANIFEST_NAME,
    ROLE_GOLDEN,
    ROLE_MODEL,
    Golden,
    Manifest,
    Task,
    Tolerance,
    file_entry,
)
from edgekit.bundle.recipe import Recipe
from edgekit.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (None, 3))
SCORES = TensorSpec("scores", DType.FLOAT32, (None, 3))
CLASSIFICATION = Task("classification", "scores", "probabilities")
TAG = TensorSpec("tag", DType.FLOAT32, (None, 1))

SURE = np.array([[9.0, 0.0, 0.0]], np.float32)
UNSURE = np.array([[0.2, 0.1, 0.0]], np.float32)


def softmax(x: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """The expected scores of every model."""
    e = np.exp(gain * x - (gain * x).max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)


def onnx_model(
    *, gain: float = 1.0, tag: float = 0.0, batch: int | None = None, work: int = 0, padding: int = 0
) -> bytes:
    """An ONNX model. `batch` None means a free batch; `work` adds matrix products that take time and change nothing.

    `padding` bytes make it large.
    """
    n = "batch" if batch is None else batch
    nodes = [helper.make_node("Mul", ["x", "gain"], ["h0"])]
    weights = {"gain": np.float32(gain), "tag_value": np.full((3, 1), tag / 3, np.float32)}
    if work:
        weights["eye"] = np.eye(3, dtype=np.float32)
    nodes += [helper.make_node("MatMul", [f"h{i}", "eye"], [f"h{i + 1}"]) for i in range(work)]
    nodes += [
        helper.make_node("Softmax", [f"h{work}"], ["scores"], axis=-1),
        helper.make_node("Mul", ["x", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], ["ones"]),
        helper.make_node("MatMul", ["ones", "tag_value"], ["tag"]),
    ]
    weights.update(zero=np.float32(0), one=np.float32(1))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [n, 3]),
            helper.make_tensor_value_info("tag", TensorProto.FLOAT, [n, 1]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.doc_string = "".join(random.Random(0).choices(string.ascii_letters, k=padding))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def litert_model(*, quantized: bool = False, signature: bool = True) -> bytes:
    """A .tflite of one SOFTMAX: float32, or int8 with scale 0.1 in and 1/256 out; batch 1."""
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, buffer: int, scale: float, zero: int) -> object:
        result = schema.TensorT()
        result.name, result.shape, result.buffer = name, [1, 3], buffer
        result.type = schema.TensorType.INT8 if quantized else schema.TensorType.FLOAT32
        if quantized:
            result.quantization = schema.QuantizationParametersT()
            result.quantization.scale, result.quantization.zeroPoint = [scale], [zero]
        return result

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SOFTMAX
    code.version = 2 if quantized else 1
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.SoftmaxOptions, schema.SoftmaxOptionsT()
    op.builtinOptions.beta = 1.0
    graph = schema.SubGraphT()
    graph.name, graph.inputs, graph.outputs, graph.operators = "main", [0], [1], [op]
    graph.tensors = [tensor("graph_x", 1, 0.1, 0), tensor("graph_scores", 2, 1 / 256, -128)]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.description = "small"
    model.buffers = [schema.BufferT() for _ in range(3)]
    model.signatureDefs = [_signature(schema)] if signature else []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _signature(schema: object) -> object:
    def entry(name: str, index: int) -> object:
        tensor_map = schema.TensorMapT()  # type: ignore[attr-defined]
        tensor_map.name, tensor_map.tensorIndex = name, index
        return tensor_map

    signature = schema.SignatureDefT()  # type: ignore[attr-defined]
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [entry("x", 0)], [entry("scores", 1)]
    return signature


def onnx_bundle(
    folder: Path,
    *,
    name: str = "small",
    version: str = "1.0.0",
    target: str = "x86-64",
    gain: float = 1.0,
    tag: float = 0.0,
    batch: int | None = 1,
    work: int = 0,
    golden_gain: float | None = None,
    padding: int = 0,
) -> Manifest:
    """Write an ONNX bundle. If `golden_gain` differs from `gain`, its self-test fails. `padding` as `onnx_model`."""
    model = onnx_model(gain=gain, tag=tag, batch=batch, work=work, padding=padding)
    x = np.array([[3, 0, 0], [0, 2, 1], [0, 0, 4]], np.float32)
    outputs = {"scores": softmax(x, gain if golden_gain is None else golden_gain), "tag": np.full((3, 1), tag)}
    bindings = [
        Binding(spec=spec, artifact=TensorSpec(spec.name, spec.dtype, (batch, *spec.shape[1:])))
        for spec in (X, SCORES, TAG)
    ]
    return write_files(
        folder,
        model=("model.onnx", model),
        golden=write_golden({"x": x}, {key: value.astype(np.float32) for key, value in outputs.items()}),
        identity={"name": name, "version": version, "target": target, "runtime": "onnxruntime"},
        inputs=tuple(bindings[:1]),
        outputs=tuple(bindings[1:]),
        max_abs=1e-5,
    )


def identity_bundle(folder: Path, *, name: str, dtypes: tuple[str, ...]) -> Manifest:
    """Write a bundle that returns each input as output ``<dtype>_out``. Each input is (N, 2), named by its dtype."""
    kinds = {"bytes": TensorProto.STRING, "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
    onnx_types = {dtype: kinds.get(dtype) or getattr(TensorProto, dtype.upper()) for dtype in dtypes}

    def infos(suffix: str) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(d + suffix, kind, ["n", 2]) for d, kind in onnx_types.items()]

    nodes = [helper.make_node("Identity", [dtype], [f"{dtype}_out"]) for dtype in dtypes]
    graph = helper.make_graph(nodes, "identity", infos(""), infos("_out"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    values = {
        d: np.array([[b"", b"a"]], object) if d == "bytes" else np.array([[0, 1]], DType(d).numpy) for d in dtypes
    }

    def bindings(suffix: str) -> tuple[Binding, ...]:
        specs = [TensorSpec(dtype + suffix, DType(dtype), (None, 2)) for dtype in dtypes]
        return tuple(Binding(spec, spec) for spec in specs)

    return write_files(
        folder,
        model=("model.onnx", bytes(model.SerializeToString())),
        golden=write_golden(values, {f"{dtype}_out": value for dtype, value in values.items()}),
        identity={"name": name, "version": "1.0.0", "target": "x86-64", "runtime": "onnxruntime"},
        inputs=bindings(""),
        outputs=bindings("_out"),
        max_abs=0.0,
        samples=1,
        task=Task(),
    )


def litert_bundle(folder: Path, *, name: str = "small", version: str = "1.0.0", quantized: bool = False) -> Manifest:
    """Write a LiteRT bundle of `litert_model`."""
    x = np.array([[3, 0, 0], [0, 2, 1], [0, 0, 4]], np.float32)
    dtype = DType.INT8 if quantized else DType.FLOAT32
    return write_files(
        folder,
        model=("model.tflite", litert_model(quantized=quantized)),
        golden=write_golden({"x": x}, {"scores": softmax(x)}),
        identity={"name": name, "version": version, "target": "raspberry-pi-4", "runtime": "litert"},
        inputs=(Binding(X, TensorSpec("x", dtype, (1, 3)), scale=0.1 if quantized else None),),
        outputs=(
            Binding(
                SCORES,
                TensorSpec("scores", dtype, (1, 3)),
                scale=1 / 256 if quantized else None,
                zero_point=-128 if quantized else 0,
            ),
        ),
        max_abs=0.02 if quantized else 1e-5,
    )


def write_files(
    folder: Path,
    *,
    model: tuple[str, bytes],
    golden: bytes,
    identity: dict[str, str],
    inputs: tuple[Binding, ...],
    outputs: tuple[Binding, ...],
    max_abs: float,
    samples: int = 3,
    task: Task = CLASSIFICATION,
) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    path, data = model
    (folder / path).write_bytes(data)
    (folder / "golden.npz").write_bytes(golden)
    manifest = Manifest(
        **identity,
        files=(file_entry(path, ROLE_MODEL, data), file_entry("golden.npz", ROLE_GOLDEN, golden)),
        inputs=inputs,
        outputs=outputs,
        golden=Golden(
            samples, tuple(Tolerance(b.spec.name, identity["runtime"], max_abs) for b in outputs), task.output != ""
        ),
        recipe=Recipe(),
        task=task,
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return manifest
