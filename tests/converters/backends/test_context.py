"""The conversion context, which the backends of one conversion share."""

import pickle

import numpy as np
import pytest

from converters.backends import ConversionContext
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.calibration.calibrate import Calibration, calibrate
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.graph import store
from edgekit.bundle.recipe import Recipe
from edgekit.errors import CalibrationError
from tests.simulators import dense_models

X = np.random.default_rng(0).normal(0, 1, (30, 32)).astype(np.float32)


@pytest.fixture
def context(tmp_path):
    graph = dense_models.autoencoder()
    return ConversionContext(graph, graph.with_batch(1), Samples({"x": X}), TensorFlowProcess(), tmp_path)


def test_what_recipes_have_in_common_is_prepared_once(context):
    """Recipes with the same rounding share weights; a recipe that changes no weights gets the graph itself."""
    fixed = context.fixed
    one = context.prepared(Recipe("int8", int4_layers=("dense1", "dense2"), rounding="gptq", ranges="mse"), fixed)
    other = context.prepared(Recipe("int8-dynamic", int4_layers=("dense2", "dense1"), rounding="gptq"), fixed)
    assert one is other
    assert context.prepared(Recipe("int8", ranges="entropy", float_layers=("dense0",)), fixed) is fixed
    assert context.prepared(Recipe("int8", correct_bias=True), fixed) is not fixed


def test_memory_is_bounded(context):
    """Prepared graphs are kept for the last few recipes only."""
    names = [f"dense{i}" for i in range(5)]
    for count in range(1, 32):
        layers = tuple(name for bit, name in enumerate(names) if count >> bit & 1)
        context.prepared(Recipe("int8-dynamic", int4_layers=layers), context.fixed)
    assert len(context._prepared) == 8


def test_a_graph_that_stays_as_it_is_has_no_second_copy(context, monkeypatch):
    """Also where memory is full: what a store reads from a file again is another object with its own weights."""
    monkeypatch.setattr(store, "MEMORY_BYTES", 0)
    plain = Recipe("int8")
    assert context.prepared(plain, context.fixed) is context.fixed
    context.prepared(Recipe("int8", equalize=True), context.fixed)
    context.prepared(Recipe("int8", correct_bias=True), context.fixed)
    assert context.prepared(plain, context.fixed) is context.fixed
    assert context.prepared_inputs(plain, context.fixed, lower=False).prepared is None


def test_copies_in_other_processes_build_the_same(context, tmp_path):
    """A copy builds the same artifact from prepared inputs that were pickled."""
    recipe = Recipe("int8", int4_layers=("dense1",), rounding="gptq", equalize=True)
    first = OnnxCpuBackend(context).build(recipe)
    copy = context.copy_with(TensorFlowProcess(), tmp_path)
    assert not copy.is_prepared(recipe, copy.fixed)
    copy.store_inputs(
        recipe, copy.fixed, pickle.loads(pickle.dumps(context.prepared_inputs(recipe, context.fixed, lower=False)))
    )
    assert copy.is_prepared(recipe, copy.fixed)
    assert OnnxCpuBackend(copy).build(recipe).data == first.data
    assert copy.calibration_of(recipe, copy.fixed).rows == 30


def test_calibration_of_an_earlier_conversion_is_reused(context, tmp_path):
    """With a given calibration nothing is measured again, and ranges need no samples."""
    data = calibrate(context.fixed, Samples({"x": X})).to_bytes()
    again = ConversionContext(
        context.graph, context.fixed, None, TensorFlowProcess(), tmp_path, Calibration.from_bytes(data)
    )
    assert OnnxCpuBackend(again).build(Recipe("int8")).data == OnnxCpuBackend(context).build(Recipe("int8")).data
    with pytest.raises(CalibrationError):
        again.prepared(Recipe("int8", correct_bias=True), again.fixed)
