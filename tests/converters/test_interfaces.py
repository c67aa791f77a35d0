"""Whole conversions of models whose batch is not the first axis of everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from converters import convert
from converters.compare import compare_models
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import parse_manifest
from edgekit.cli.inspect import inspect
from edgekit.runtimes import open_runtime
from edgekit.tensors import Array
from tests.simulators import models

NODE = helper.make_node
PLAIN = {"name": "m", "accept_unproven": True}


def recurrent(folder: Path) -> Path:
    """A cell with state (2, N, 4), a scalar input `sr`, an input `unused` that nobody reads, and a free `width`."""
    rng = np.random.default_rng(0)
    nodes = [
        NODE("ReduceMean", ["x"], ["pooled"], axes=[1], keepdims=0),
        NODE("Split", ["h"], ["h0", "h1"], axis=0),
        NODE("Squeeze", ["h0", "zero"], ["s0"]),
        NODE("Squeeze", ["h1", "zero"], ["s1"]),
        NODE("MatMul", ["pooled", "w"], ["xw"]),
        NODE("Add", ["xw", "s0"], ["a"]),
        NODE("Tanh", ["a"], ["t"]),
        NODE("Add", ["t", "s1"], ["sum"]),
        NODE("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
        NODE("Mul", ["sum", "rate"], ["y"]),
        NODE("Unsqueeze", ["t", "zero"], ["n0"]),
        NODE("Unsqueeze", ["sum", "zero"], ["n1"]),
        NODE("Concat", ["n0", "n1"], ["hn"], axis=0),
    ]
    weights = {"zero": np.array([0]), "w": rng.normal(0, 0.4, (3, 4)).astype(np.float32)}
    inputs: dict[str, list[object]] = {"x": ["n", "width", 3], "h": [2, "n", 4], "sr": [], "unused": ["n", 2]}
    model = models.model_of(nodes, inputs, {"y": ["n", 4], "hn": [2, "n", 4]}, weights)
    model.graph.input[2].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def samples(folder: Path, rows: int = 60) -> Path:
    rng = np.random.default_rng(1)
    arrays: dict[str, Array] = {"x": rng.normal(0, 1, (rows, 5, 3)), "h": rng.normal(0, 1, (rows, 2, 4))}
    np.savez(folder / "d.npz", sr=np.int64(3), **{name: value.astype(np.float32) for name, value in arrays.items()})
    return folder / "d.npz"


def require_interface(bundle: Path, source: Path) -> None:
    """The bundle offers the source's tensors, passes its self-test, and answers as the source does."""
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    shapes = {one.spec.name: one.spec.shape for one in (*manifest.inputs, *manifest.outputs)}
    assert shapes == {
        "x": (None, 5, 3), "h": (2, None, 4), "sr": (), "unused": (None, 2), "y": (None, 4), "hn": (2, None, 4)
    }  # fmt: skip
    runtime = open_runtime(manifest, bundle)
    assert self_test(runtime, manifest, (bundle / "golden.npz").read_bytes()).passed
    rng = np.random.default_rng(2)
    inputs = {
        "x": rng.normal(0, 1, (3, 5, 3)).astype(np.float32),
        "h": rng.normal(0, 1, (2, 3, 4)).astype(np.float32),
        "sr": np.array(3),
        "unused": np.zeros((3, 2), np.float32),
    }
    import onnxruntime

    expected = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"]).run(["y", "hn"], inputs)
    found = runtime.run(inputs)
    runtime.close()
    for name, value in zip(("y", "hn"), expected, strict=True):
        np.testing.assert_allclose(found[name], value, atol=0.02)


def test_bundle_for_onnx_runtime_keeps_the_interface_of_the_source(tmp_path: Path) -> None:
    """Sizes and the scalar come from the data; compare and inspect understand the source and its bundle."""
    source, data = recurrent(tmp_path), samples(tmp_path)
    reports = convert(source, targets=["server", "jetson-orin"], data=data, output=tmp_path / "out", **PLAIN)
    for report in reports:
        require_interface(Path(report.bundle), source)
        assert any("width = 5" in note for note in report.notes)
        assert any("sr is fixed to 3" in note for note in report.notes)
    [compared] = compare_models(source, Path(reports[0].bundle), [data], metric=None, confidence=0.95)
    assert compared.parity.max_abs < 1e-4
    shown = json.loads(CliRunner().invoke(inspect, [str(source), "--json"]).stdout)
    assert shown["batch"] == "free for clients; rows run one at a time"
    assert any("--dim width=" in note for note in shown["notes"])
    bundle = CliRunner().invoke(inspect, [reports[0].bundle]).stdout
    assert "fixed to 3" in bundle
    assert "not read" in bundle


@pytest.mark.heavy
def test_bundle_for_litert_keeps_the_interface_of_the_source(tmp_path: Path) -> None:
    """The options settle and fix what data would, and LiteRT gets the batch first."""
    source = recurrent(tmp_path)
    [report] = convert(
        source, targets=["raspberry-pi-4"], output=tmp_path / "out", dims={"width": 5}, fixed={"sr": 3}, **PLAIN
    )
    require_interface(Path(report.bundle), source)


def test_outputs_of_truth_values_are_converted(tmp_path: Path) -> None:
    """An output of bools is compared exactly, also by the device's self-test."""
    nodes = [NODE("MatMul", ["x", "w"], ["y"]), NODE("Greater", ["y", "zero"], ["positive"])]
    weights = {"w": np.random.default_rng(0).normal(0, 0.4, (3, 4)).astype(np.float32), "zero": np.float32(0)}
    model = models.model_of(nodes, {"x": ["n", 3]}, {"y": ["n", 4], "positive": ["n", 4]}, weights)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.BOOL
    onnx.save(model, tmp_path / "m.onnx")
    [report] = convert(tmp_path / "m.onnx", targets=["server"], output=tmp_path, **PLAIN)
    bundle = Path(report.bundle)
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    runtime = open_runtime(manifest, bundle)
    assert self_test(runtime, manifest, (bundle / "golden.npz").read_bytes()).passed
    runtime.close()
