"""The keyword spotting model of MLPerf Tiny, where its files are beside the repository."""

from pathlib import Path

import numpy as np
import pytest

from converters.canonical import canonical_of
from converters.data.samples import Samples
from converters.options import ConversionOptions
from converters.passes.channels.groups import without
from converters.passes.channels.rules import channels_of
from converters.pipeline import run_plan
from converters.plan import make_plan
from converters.prepare import load_source
from converters.pruning.families import removed_by_names
from converters.pruning.kept import numbers_of
from converters.pruning.pruner import ChannelPruner, parameters
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.runtimes import open_runtime

LONG_SECONDS = 40  # of the whole file: it starts early, see tests/conftest.py

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "mlperf_tiny_kws"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER.name} is not beside the repository"),
]


# A whole conversion of a real network, with every kind of candidate: about 35 s.
def test_saved_model_with_optimizer_slots_becomes_a_bundle(child, tmp_path):
    """A model that the usual loader cannot read keeps its quality in less than half of the reference's bytes."""
    plan = make_plan(
        FOLDER / "saved_model",
        ConversionOptions(
            targets=["raspberry-pi-4"],
            data=FOLDER / "calibration.npz",
            test=FOLDER / "test.npz",
            aim="size",
            accept_unproven=True,
            name="kws",
            output=tmp_path,
        ),
    )
    [report] = run_plan(plan, child=child)
    assert report.test.float_ == pytest.approx(0.91)
    assert report.test.chosen >= report.test.float_ - 0.015  # 600 samples have a standard error of 1.2 points
    assert report.route.reason == "the direct file is no better than the lowered one"
    assert report.chosen_candidate.bytes <= 22_000 < (FOLDER / "reference_int8.tflite").stat().st_size / 2
    folder = Path(report.bundle)
    runtime = open_runtime(parse_manifest((folder / MANIFEST_NAME).read_bytes()), folder)
    test = np.load(FOLDER / "test.npz")
    [answers] = runtime.run({runtime.inputs[0].name: test["x"][:100]}).values()
    runtime.close()
    assert np.mean(np.argmax(answers, axis=1) == test["y"][:100]) > 0.85


# Loading takes most of the time: about 20 s.
def test_refit_keeps_the_accuracy_of_a_pruned_network(child):
    """Without labels and gradient steps, 60 % of the parameters keep 98 % of the accuracy; cut alone they lose half."""
    options = ConversionOptions(targets=["raspberry-pi-4"], data=FOLDER / "calibration.npz")
    source = load_source(make_plan(FOLDER / "saved_model", options), child)
    calibration, test = np.load(FOLDER / "calibration.npz"), np.load(FOLDER / "test.npz")
    name = source.graph.inputs[0].name
    graph = canonical_of(source, Samples({name: calibration["x"][:32]}), prune=True).graph
    pruner = ChannelPruner(graph, Samples({name: calibration["x"]}), (graph.outputs[0].name, None))

    def accuracy(made):
        return np.mean(np.argmax(made.run({name: test["x"]})[graph.outputs[0].name], axis=1) == test["y"])

    whole = accuracy(graph)
    for share, least in ((0.93, 0.905), (0.86, 0.90), (0.6, 0.89)):
        level = pruner.level(share, parameters, "size")
        made = pruner.pruned(level.kept).graph
        assert made.parameters <= share * graph.parameters
        assert accuracy(made) >= least, share
    channels = channels_of(graph)
    removed = removed_by_names(channels, {layer: numbers_of(text) for layer, text in level.kept})
    assert accuracy(without(channels, removed)) < 0.6 * whole
