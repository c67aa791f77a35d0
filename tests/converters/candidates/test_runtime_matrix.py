"""The chosen artifact in every way that it can be run here."""

import platform

import msgspec
import numpy as np
import pytest
from onnx import helper

from converters.backends import Artifact, Workbench
from converters.backends.litert import LiteRTBackend
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.candidates.artifact_contents import contents_of
from converters.candidates.runtime_matrix import WORK, matrix, sums_exactly
from converters.data.samples import random_samples
from converters.framework_process import TensorFlowChild
from converters.frontends.onnx import canonical
from converters.quality.parity import beside_device
from converters.report.report import Contents
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ParityError, RuntimeLoadError
from tests.simulators.conv_models import separable
from tests.simulators.models import model_of
from tests.simulators.small_models import litert_bundle, softmax

FOUR = ("point1", "point2")
ROWS = np.random.default_rng(2).normal(0, 2, (40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A small network of depthwise and pointwise layers with its samples; nothing here needs TensorFlow."""
    graph = separable()
    samples = random_samples(graph.logical_inputs, 40, 1)
    return Workbench(graph, graph.with_batch(1), samples, None, tmp_path_factory.mktemp("bench"))


def onnx_artifact(bench, recipe):
    return OnnxCpuBackend(bench, free_batch=False).build(recipe)


def litert_artifact(folder, *, quantized):
    manifest = litert_bundle(folder, quantized=quantized)
    data = (folder / "model.tflite").read_bytes()
    return Artifact("model.tflite", data, "litert", manifest.inputs, manifest.outputs)


def ways_of(artifact, inputs, expected, folder, *, exact=False, macs=100, decision="scores"):
    found = matrix(artifact, inputs, expected, exact=exact, macs=macs, decision=decision, folder=folder)
    assert not found.left
    return found.parity


def test_a_litert_file_is_run_in_five_ways(tmp_path):
    """The delegate as the device has it, then more threads and other kernels, on 32 rows; differences in steps too."""
    artifact = litert_artifact(tmp_path, quantized=True)
    found = ways_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path)
    assert [way.where.partition(", ")[2] for way in found] == [
        "XNNPACK, as the device",
        "XNNPACK, 2 threads",
        "built-in kernels",
        "built-in kernels, 2 threads",
        "reference kernels",
    ]
    assert all(way.runtime.startswith("LiteRT 2") and way.rows == 32 and 0 < way.max_abs < 0.03 for way in found)
    assert found[0].device.equal
    assert all(way.device.steps == round(way.device.max_abs * 256) <= 1 for way in found)


def test_kernels_really_differ(tmp_path):
    """A float softmax: the three sets of kernels do not all round alike, so they are not one under three names."""
    artifact = litert_artifact(tmp_path, quantized=False)
    found = ways_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path)
    assert {way.device.equal for way in found} == {True, False}
    assert all(way.device.max_abs < 1e-6 and way.device.steps is None for way in found)


def test_an_onnx_file_is_run_in_four_ways(bench, tmp_path):
    """As the device, with more threads, as the graph is, and on x86 as a careless run would."""
    inputs = bench.samples.inputs
    artifact = onnx_artifact(bench, Recipe("int8"))
    found = ways_of(artifact, inputs, bench.graph.run(inputs), tmp_path, exact=True)
    careless = [way for way in found if "careless" in way.where]
    assert len(careless) == (platform.machine() == "x86_64")
    assert len(found) == 3 + len(careless)
    assert [way.device.promised for way in found[:3]] == [False, True, False]
    assert found[1].device.equal


def test_of_a_large_model_fewer_rows_are_run(tmp_path):
    """Reference kernels are slow: the work of one way is bounded, and a row is always run."""
    artifact = litert_artifact(tmp_path, quantized=False)
    for macs, rows in ((WORK // 5, 5), (WORK * 3, 1)):
        found = ways_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path, macs=macs)
        assert {way.rows for way in found} == {rows}


def test_a_broken_promise_is_an_error_that_names_the_way():
    """One bit is enough; where nothing is promised it is told and no more."""
    answers = {"y": np.array([[1.0, 0.5]], np.float32)}
    other = {"y": np.nextafter(answers["y"], np.float32(2))}
    how = {"runtime": "LiteRT 9", "where": "2 threads", "decision": "y", "scales": {}}
    seen = beside_device(answers, other, promised=False, **how)
    assert (seen.equal, seen.agreement, seen.steps) == (False, 1.0, None)
    with pytest.raises(ParityError, match=r"LiteRT 9 \(2 threads\).*expected the same bits"):
        beside_device(answers, other, promised=True, **how)


@pytest.mark.parametrize(
    ("recipe", "exact"),
    [
        (Recipe("int8"), True),
        (Recipe("int8", float_layers=("last",)), False),
        (Recipe("int8", int4_layers=FOUR), False),
        (Recipe("int8-weights"), False),
        (Recipe(), False),
    ],
    ids=lambda value: value.id if isinstance(value, Recipe) else "",
)
def test_bits_are_promised_only_where_sums_are_of_integers(bench, recipe, exact, tmp_path):
    """Static int8 in every layer that has weights; a float or 4-bit layer sums floats, whose order may change."""
    artifact = onnx_artifact(bench, recipe)
    assert sums_exactly(artifact, recipe, contents_of(artifact, tmp_path)) is exact


@pytest.mark.heavy
def test_kernels_that_lack_an_operator_are_told_and_left_out(tmp_path):
    """LiteRT's reference kernels know no ELU; the device's do, so the conversion goes on."""
    graph = canonical(
        model_of([helper.make_node("Elu", ["x"], ["y"])], {"x": ["batch", 3]}, {"y": ["batch", 3]}), "elu"
    )
    with TensorFlowChild() as child:
        artifact = LiteRTBackend(Workbench(graph, graph.with_batch(1), None, child, tmp_path)).build(Recipe())
    inputs = {"x": ROWS}
    found = matrix(artifact, inputs, graph.run(inputs), exact=False, macs=100, decision="", folder=tmp_path)
    assert len(found.parity) == 4
    assert "reference kernels) cannot run it" in found.left[0]


def test_device_that_cannot_run_it_is_an_error(tmp_path):
    """Of the device's own runtime nothing is left out."""
    artifact = msgspec.structs.replace(litert_artifact(tmp_path, quantized=False), data=b"no model")
    with pytest.raises(RuntimeLoadError):
        ways_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path)


def test_built_in_kernels_are_promised_nothing(tmp_path):
    """Where XNNPACK leaves a layer of an int8 file to them, more threads may choose another algorithm."""
    artifact = litert_artifact(tmp_path, quantized=True)
    for delegated in (True, False):
        contents = Contents({}, (), 0, 0, delegated=delegated)
        assert sums_exactly(artifact, Recipe("int8"), contents) is delegated
