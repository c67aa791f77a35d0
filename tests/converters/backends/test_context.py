"""What the backends of one conversion share."""

import pickle

import numpy as np
import pytest

from converters.backends import Workbench
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.calibration.calibrate import Calibration, calibrate
from converters.data.samples import Samples
from converters.framework_process import TensorFlowChild
from edgekit.bundle.recipe import Recipe
from edgekit.errors import CalibrationError
from tests.simulators import dense_models

X = np.random.default_rng(0).normal(0, 1, (30, 32)).astype(np.float32)


@pytest.fixture
def bench(tmp_path):
    graph = dense_models.autoencoder()
    return Workbench(graph, graph.with_batch(1), Samples({"x": X}), TensorFlowChild(), tmp_path)


def test_what_recipes_have_in_common_is_prepared_once(bench):
    """Rounding goes by layers and rounding alone; what changes nothing is the graph itself."""
    fixed = bench.fixed
    one = bench.prepared(Recipe("int8", int4_layers=("dense1", "dense2"), rounding="gptq", ranges="mse"), fixed)
    other = bench.prepared(Recipe("int8-dynamic", int4_layers=("dense2", "dense1"), rounding="gptq"), fixed)
    assert one is other
    assert bench.prepared(Recipe("int8", ranges="entropy", float_layers=("dense0",)), fixed) is fixed
    assert bench.prepared(Recipe("int8", correct_bias=True), fixed) is not fixed


def test_memory_is_bounded(bench):
    """Graphs with all their weights are kept for the last few recipes only."""
    names = [f"dense{i}" for i in range(5)]
    for count in range(1, 32):
        layers = tuple(name for bit, name in enumerate(names) if count >> bit & 1)
        bench.prepared(Recipe("int8-dynamic", int4_layers=layers), bench.fixed)
    assert len(bench._prepared) == 8


def test_copies_in_other_processes_build_the_same(bench, tmp_path):
    """What a recipe needs beyond graphs and samples is handed over, also where it passes through bytes."""
    recipe = Recipe("int8", int4_layers=("dense1",), rounding="gptq", equalize=True)
    first = OnnxCpuBackend(bench).build(recipe)
    copy = bench.another(TensorFlowChild(), tmp_path)
    assert not copy.is_prepared(recipe, copy.fixed)
    copy.furnish(recipe, copy.fixed, pickle.loads(pickle.dumps(bench.furnishing(recipe, bench.fixed, lower=False))))
    assert copy.is_prepared(recipe, copy.fixed)
    assert OnnxCpuBackend(copy).build(recipe).data == first.data
    assert copy.calibration_of(recipe, copy.fixed).rows == 30


def test_calibration_of_an_earlier_conversion_is_reused(bench, tmp_path):
    """Given one, nothing is measured again: ranges come out of it, without any samples."""
    data = calibrate(bench.fixed, Samples({"x": X})).to_bytes()
    again = Workbench(bench.graph, bench.fixed, None, TensorFlowChild(), tmp_path, Calibration.from_bytes(data))
    assert OnnxCpuBackend(again).build(Recipe("int8")).data == OnnxCpuBackend(bench).build(Recipe("int8")).data
    with pytest.raises(CalibrationError):
        again.prepared(Recipe("int8", correct_bias=True), again.fixed)
