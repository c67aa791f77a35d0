"""Whole models of many kinds, converted for both runtimes of a Raspberry Pi."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from converters.backends import ConversionContext
from converters.backends.litert import LiteRTBackend
from converters.backends.tflite.reader import weighted_ops
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.options import ConversionOptions
from converters.passes import Simplify, run_pass
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.recipe import PRESETS, Recipe
from edgekit.runtimes import open_runtime
from edgekit.runtimes.litert import LiteRTRuntime
from tests.simulators import conv_models, dense_models, headed_models

pytestmark = pytest.mark.heavy

MODELS = {
    "residual": conv_models.residual,
    "depthwise": conv_models.separable,
    "autoencoder": dense_models.autoencoder,
    "lstm": dense_models.lstm,
    "gru": headed_models.gru,
    "encoder": dense_models.encoder,
    "encoder-whole-norms": lambda: dense_models.encoder(whole_norms=True),
    "detector": headed_models.detector,
    "two-inputs": headed_models.two_inputs,
    "image-to-image": headed_models.image_to_image,
}


def rows_of(graph, rows, seed=7):
    rng = np.random.default_rng(seed)
    return {spec.name: rng.normal(0, 1, (rows, *spec.shape[1:])).astype(np.float32) for spec in graph.inputs}


def operators(path: Path):
    return [entry["op_name"] for entry in LiteRTRuntime(path)._interpreter._get_ops_details()]


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
@pytest.mark.parametrize("name", MODELS)
def test_model_answers_in_its_bundle_as_before(name, runtime, child, tmp_path):
    """Names, shapes and answers stay equal; on LiteRT one delegate runs the whole graph, without transpositions."""
    graph = MODELS[name]()
    onnx.save_model(graph.model, tmp_path / "model.onnx")
    plan = make_plan(
        tmp_path / "model.onnx",
        ConversionOptions(
            targets=["raspberry-pi-4"], runtime=runtime, recipe=PRESETS["float32"], output=tmp_path, name=name
        ),
    )
    [report] = run_plan(plan, child=child)
    folder = Path(report.bundle)
    bundle = open_runtime(parse_manifest((folder / MANIFEST_NAME).read_bytes()), folder)
    x = rows_of(graph, 3)
    expected, found = graph.run(x), bundle.run(x)
    bundle.close()
    assert list(found) == list(expected)
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, atol=2e-5, rtol=1e-4)
    if runtime == "litert":
        used = operators(next(folder.glob("*.tflite")))
        assert used.count("DELEGATE") == 1
        assert used.count("TRANSPOSE") == (4 if name.startswith("encoder") else 0)  # attention turns its heads about


@pytest.fixture(scope="module")
def build(child, tmp_path_factory):
    """Build one recipe of a model for LiteRT: its artifact, and each output's error relative to the answers' size."""
    contexts = {}

    def build(name, kind):
        if name not in contexts:
            graph = run_pass(Simplify(), MODELS[name]()).graph
            fixed = run_pass(Simplify(), graph.with_batch(1)).graph
            samples = Samples(rows_of(graph, 80, seed=1))
            contexts[name] = ConversionContext(graph, fixed, samples, child, tmp_path_factory.mktemp(name))
        context = contexts[name]
        artifact = LiteRTBackend(context).build(Recipe(precision=kind))
        runtime = open_artifact(artifact, tmp_path_factory.mktemp("run"))
        x = rows_of(context.graph, 40, seed=2)
        expected, found = context.graph.run(x), run_rows(runtime, x)
        runtime.close()
        return artifact, {key: _share(found[key], value) for key, value in expected.items()}

    return build


def _share(found, expected):
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "int8-weights"])
@pytest.mark.parametrize("name", ["autoencoder", "lstm", "gru", "encoder", "detector"])
def test_every_kind_of_int8_answers_near_the_float_model(name, kind, build):
    """Every int8 kind of recurrent layers, attention and joined heads answers near float."""
    artifact, errors = build(name, kind)
    assert {op.dtype for op in weighted_ops(artifact.data)} == {"int8"}
    assert max(errors.values()) < (0.05 if kind == "int8" else 0.025)
