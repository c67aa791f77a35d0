"""Recurrent layers of Keras that arrive as Loops are restored to GRU, LSTM and RNN."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.framework_process import TensorFlowProcess
from converters.frontends import load_model
from converters.frontends.onnx import canonical
from converters.graph.graph import digest_of
from converters.options import ConversionOptions
from converters.passes import RestoreRecurrent, Simplify, run_pass
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.runtimes import open_runtime
from tests.simulators.models import model_of

LONG_SECONDS = 150  # of the whole file: it starts early, see tests/conftest.py

MODELS = """
import sys, numpy as np, keras
from keras import layers as L
keras.utils.set_random_seed(4)
def kept(name, *parts, saved=False):
    model = keras.Sequential([keras.Input((32, 6), name="x"), *parts])
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype("float32") for w in model.get_weights()])
    model.save(f"{sys.argv[1]}/{name}.keras")
    if saved:
        model.export(f"{sys.argv[1]}/{name}_saved", verbose=False)
last = lambda: L.Dense(3, name="out")
kept("after", L.GRU(8), last())
kept("before", L.GRU(8, reset_after=False), last())
kept("bare", L.GRU(8, use_bias=False), last())
kept("parted", L.GRU(8, recurrent_dropout=0.1), last())
kept("plain", L.SimpleRNN(8), last())
kept("long", L.LSTM(8, recurrent_dropout=0.1, return_sequences=True, name="out"))
kept("lstm", L.Bidirectional(L.LSTM(8)), last())
kept("both", L.Bidirectional(L.GRU(8, return_sequences=True)), L.GRU(4, return_sequences=True, go_backwards=True),
     L.TimeDistributed(L.Dense(3), name="out"), saved=True)
kept("masked", L.Masking(), L.GRU(8), last())
np.savez(sys.argv[1] + "/x.npz", x=np.random.default_rng(3).normal(0, 1, (300, 32, 6)).astype("float32"))
"""


# TensorFlow starts and saves nine networks: about 15 s.
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recurrent")
    subprocess.run([sys.executable, "-c", MODELS, str(folder)], check=True, capture_output=True)
    return folder


def restored(source):
    """The graph after the pass, with parity checked as in the pipeline."""
    before = run_pass(Simplify(), source.graph).graph
    result = run_pass(RestoreRecurrent(), before)
    x = {source.graph.inputs[0].name: np.random.default_rng(1).normal(0, 1, (5, 32, 6)).astype(np.float32)}
    for name, expected in source.answers(x).items():
        np.testing.assert_allclose(result.graph.run(x)[name], expected, atol=2e-6)
    return result


CASES = {
    "after.keras": ["GRU"],
    "before.keras": ["GRU"],
    "bare.keras": ["GRU"],
    "parted.keras": ["GRU"],
    "plain.keras": ["RNN"],
    "long.keras": ["LSTM"],
    "both.keras": ["GRU", "GRU", "GRU"],
    "both_saved": ["GRU", "GRU", "GRU"],
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", CASES)
def test_loops_become_operators(name, folder, child):
    """There is one operator per layer and direction, named after the layer, with the same outputs and no Loop."""
    graph = restored(load_model(folder / name, child)).graph
    found = [node for node in graph.nodes if node.op_type in ("GRU", "LSTM", "RNN", "Loop")]
    assert [node.op_type for node in found] == CASES[name]
    assert all(node.name.endswith("/" + node.op_type) for node in found)
    assert "ReverseSequence" not in graph.operators


@pytest.mark.heavy
def test_a_masked_layer_stays_a_loop(folder, child):
    """The step of a masked layer computes more than a cell, so its Loop stays."""
    assert restored(load_model(folder / "masked.keras", child)).graph.operators["Loop"] == 1


# Two new processes start TensorFlow and export a recurrent network: up to 60 s.
@pytest.mark.heavy
@pytest.mark.parametrize("name", ["both", "lstm"])
def test_two_exports_are_the_same_graph(name, folder):
    """Two TensorFlow processes give the same graph, so that cached candidates are found again."""
    digests = set()
    for _ in range(2):
        with TensorFlowProcess() as child:
            digests.add(digest_of(restored(load_model(folder / f"{name}.keras", child)).graph))
    assert len(digests) == 1


# TensorFlow lowers 96 unrolled steps: about 15 s.
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("runtime", "precision"), [("litert", "int8"), ("litert", "float32"), ("onnxruntime", "float32")]
)
def test_both_ways_end_to_end(runtime, precision, folder, child, tmp_path):
    """A bidirectional GRU and a backward one become artifacts, also static int8, that pass their self-tests."""
    plan = make_plan(
        folder / "both.keras",
        ConversionOptions(
            targets=["raspberry-pi-4"],
            runtime=runtime,
            data=folder / "x.npz",
            recipe=Recipe(precision),
            max_drop=1.0,
            accept_unproven=True,
            output=tmp_path,
        ),
    )
    [report] = run_plan(plan, child=child)
    assert [candidate.id for candidate in report.candidates] == [precision]
    bundle = tmp_path / "both-1.0.0-raspberry-pi-4"
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    opened = open_runtime(manifest, bundle)
    try:
        assert self_test(opened, manifest, (bundle / "golden.npz").read_bytes()).passed
    finally:
        opened.close()


def test_zeros_to_begin_with_and_double_reversals_go():
    """Zero first states, ONNX's default, and double reversals are removed."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 1, (1, 12, 3)).astype(np.float32),
        "r": rng.normal(0, 1, (1, 12, 4)).astype(np.float32),
        "zero": np.zeros((1, 1, 1), np.float32),
        "shape": np.array([1, 1, 4]),
        "lengths": np.array([6]),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("ReverseSequence", ["t", "lengths"], ["once"], time_axis=0, batch_axis=1),
        helper.make_node("ReverseSequence", ["once", "lengths"], ["twice"], time_axis=0, batch_axis=1),
        helper.make_node("Expand", ["zero", "shape"], ["begin"]),
        helper.make_node("GRU", ["twice", "w", "r", "", "", "begin"], ["s", "last"], hidden_size=4),
        helper.make_node("Squeeze", ["last", "first"], ["y"]),
    ]
    weights["first"] = np.array([0])
    model = model_of(nodes, {"x": [1, 6, 3]}, {"y": [1, 4]}, weights)
    before = canonical(onnx.ModelProto.FromString(model.SerializeToString()), "test")
    after = run_pass(RestoreRecurrent(), before)
    assert after.modified
    assert dict(after.graph.operators) == {"Transpose": 1, "GRU": 1, "Squeeze": 1}
    x = {"x": rng.normal(0, 1, (1, 6, 3)).astype(np.float32)}
    np.testing.assert_allclose(after.graph.run(x)["y"], before.run(x)["y"], atol=1e-6)
