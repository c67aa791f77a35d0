"""The chosen artifact on every runtime variant of this machine."""

import platform

import msgspec
import numpy as np
import pytest
from onnx import helper

from converters.backends import Artifact, ConversionContext
from converters.backends.litert import LiteRTBackend
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.candidates.artifact_contents import contents_of
from converters.candidates.runtime_matrix import MAX_MACS, run_variants, sums_exactly
from converters.data.random_inputs import random_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.quality.parity import compare_with_device
from converters.report.report import ArtifactContents
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ParityError, RuntimeLoadError
from tests.simulators.conv_models import separable
from tests.simulators.models import model_of
from tests.simulators.small_models import litert_bundle, softmax

FOUR = ("point1", "point2")
ROWS = np.random.default_rng(2).normal(0, 2, (40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A small network of depthwise and pointwise layers with its samples, without TensorFlow."""
    graph = separable()
    samples = random_samples(graph, 40, 1)
    return ConversionContext(graph, graph.with_batch(1), samples, None, tmp_path_factory.mktemp("context"))


def onnx_artifact(context, recipe):
    return OnnxCpuBackend(context, free_batch=False).build(recipe)


def litert_artifact(folder, *, quantized):
    manifest = litert_bundle(folder, quantized=quantized)
    data = (folder / "model.tflite").read_bytes()
    return Artifact("model.tflite", data, "litert", manifest.inputs, manifest.outputs)


def variants_of(artifact, inputs, expected, folder, *, exact=False, macs=100, decision="scores"):
    found = run_variants(artifact, inputs, expected, exact=exact, macs=macs, decision=decision, folder=folder)
    assert not found.failures
    return found.parity


def test_a_litert_file_is_run_in_five_ways(tmp_path):
    """The device's delegate, more threads and other kernels run 32 rows; differences are also counted in steps."""
    artifact = litert_artifact(tmp_path, quantized=True)
    found = variants_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path)
    assert [one.where.partition(", ")[2] for one in found] == [
        "XNNPACK, as on the device",
        "XNNPACK, 2 threads",
        "built-in kernels",
        "built-in kernels, 2 threads",
        "reference kernels",
    ]
    assert all(one.runtime.startswith("LiteRT 2") and one.rows == 32 and 0 < one.max_abs < 0.03 for one in found)
    assert found[0].device.equal
    assert all(one.device.steps == round(one.device.max_abs * 256) <= 1 for one in found)


def test_kernels_really_differ(tmp_path):
    """The three sets of kernels round a float softmax differently, so they really are different kernels."""
    artifact = litert_artifact(tmp_path, quantized=False)
    found = variants_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path)
    assert {one.device.equal for one in found} == {True, False}
    assert all(one.device.max_abs < 1e-6 and one.device.steps is None for one in found)


def test_an_onnx_file_is_run_in_four_ways(context, tmp_path):
    """As on the device, with more threads, without graph optimization, and on x86 without the precise mode."""
    inputs = context.samples.inputs
    artifact = onnx_artifact(context, Recipe("int8"))
    found = variants_of(artifact, inputs, context.graph.run(inputs), tmp_path, exact=True)
    saturating = [one for one in found if "x64quantprecision off" in one.where]
    assert len(saturating) == (platform.machine() == "x86_64")
    assert len(found) == 3 + len(saturating)
    assert [one.device.promised for one in found[:3]] == [False, True, False]
    assert found[1].device.equal


def test_of_a_large_model_fewer_rows_are_run(tmp_path):
    """Reference kernels are slow, so the multiply-adds of one variant are bounded; at least one row runs."""
    artifact = litert_artifact(tmp_path, quantized=False)
    for macs, rows in ((MAX_MACS // 5, 5), (MAX_MACS * 3, 1)):
        found = variants_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path, macs=macs)
        assert {one.rows for one in found} == {rows}


def test_a_broken_promise_is_an_error_that_names_the_way():
    """A difference of one bit is an error where equal bits are promised, and is only reported elsewhere."""
    answers = {"y": np.array([[1.0, 0.5]], np.float32)}
    other = {"y": np.nextafter(answers["y"], np.float32(2))}
    variant = {"runtime": "LiteRT 9", "where": "2 threads", "decision": "y", "scales": {}}
    difference = compare_with_device(answers, other, promised=False, **variant)
    assert (difference.equal, difference.agreement, difference.steps) == (False, 1.0, None)
    with pytest.raises(ParityError, match=r"LiteRT 9 \(2 threads\).*expected equal bits"):
        compare_with_device(answers, other, promised=True, **variant)


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
def test_bits_are_promised_only_where_sums_are_of_integers(context, recipe, exact, tmp_path):
    """Equal bits need static int8 in every layer with weights; other layers sum floats, whose order may change."""
    artifact = onnx_artifact(context, recipe)
    assert sums_exactly(artifact, recipe, contents_of(artifact, tmp_path)) is exact


@pytest.mark.heavy
def test_kernels_that_lack_an_operator_are_told_and_left_out(tmp_path):
    """LiteRT's reference kernels lack ELU and the device's kernels have it: the conversion continues."""
    graph = canonical(
        model_of([helper.make_node("Elu", ["x"], ["y"])], {"x": ["batch", 3]}, {"y": ["batch", 3]}), "elu"
    )
    with TensorFlowProcess() as child:
        artifact = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), None, child, tmp_path)).build(Recipe())
    inputs = {"x": ROWS}
    found = run_variants(artifact, inputs, graph.run(inputs), exact=False, macs=100, decision="", folder=tmp_path)
    assert len(found.parity) == 4
    assert "reference kernels) cannot run the artifact" in found.failures[0]


def test_device_that_cannot_run_it_is_an_error(tmp_path):
    """A failure of the device's own runtime ends the conversion."""
    artifact = msgspec.structs.replace(litert_artifact(tmp_path, quantized=False), content=b"no model")
    with pytest.raises(RuntimeLoadError):
        variants_of(artifact, {"x": ROWS}, {"scores": softmax(ROWS)}, tmp_path)


def test_built_in_kernels_are_promised_nothing(tmp_path):
    """No equal bits where XNNPACK leaves a layer to built-in kernels: more threads may choose another algorithm."""
    artifact = litert_artifact(tmp_path, quantized=True)
    for delegated in (True, False):
        contents = ArtifactContents({}, (), 0, 0, delegated=delegated)
        assert sums_exactly(artifact, Recipe("int8"), contents) is delegated
