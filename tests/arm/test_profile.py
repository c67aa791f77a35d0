"""Instruction counts of the real aarch64 wheels on emulated cores. Run: make arm && make test-arm."""

import numpy as np
import pytest

from converters import convert
from converters.cost.emulated.cores import CORES
from converters.cost.measuring.process import Measuring
from converters.cost.profile import profile_bundle
from tests.arm import prepare
from tests.simulators import models
from tests.simulators.conv_models import residual
from tests.simulators.models import saved
from tests.simulators.small_models import litert_bundle, onnx_bundle

pytestmark = [
    pytest.mark.arm,
    pytest.mark.soak,
    pytest.mark.skipif(not prepare.is_made(), reason="no aarch64 wheels; download them: make arm"),
]


@pytest.mark.parametrize("core", CORES)
def test_counts_repeat_in_each_process(core, tmp_path):
    """Two processes count the same within 0.1 % or 100 instructions, of both runtimes; layers are there, times not."""
    for write in (litert_bundle, onnx_bundle):
        write(tmp_path / write.__name__)
        first, second = (profile_bundle(tmp_path / write.__name__, core) for _ in range(2))
        assert first.instructions == pytest.approx(second.instructions, rel=0.001, abs=100)
        assert first.instructions > 1000
        assert first.layers, first.no_layers
        assert first.p50_ms is None


def test_layers_add_up_to_the_count(tmp_path):
    """The nodes of ONNX Runtime have nearly all instructions of a run, and a convolution has most of them."""
    path = saved(residual().model, tmp_path / "model.onnx")
    with Measuring("cortex-a72") as measuring:
        inputs = {"x": np.zeros((1, 3, 16, 16), np.float32)}
        outcome = measuring.measure(path, "onnxruntime", inputs, layers=True)
    assert outcome.layers is not None
    assert sum(layer.instructions for layer in outcome.layers) == pytest.approx(outcome.instructions, rel=0.1)
    assert "Conv" in max(outcome.layers, key=lambda layer: layer.instructions).kernel


def test_a_conversion_chooses_among_its_last_candidates_by_counts(tmp_path):
    """The chosen candidate and the float32 one have counted costs, and the others estimates; the report says which."""
    path = saved(models.classifier(), tmp_path / "model.onnx")
    models.labelled_data(tmp_path / "data.npz")
    [report] = convert(
        path,
        targets=["raspberry-pi-5"],
        runtime="onnxruntime",
        data=tmp_path / "data.npz",
        output=tmp_path,
        max_drop=1.0,
        accept_unproven=True,
        prune="none",
    )
    costs = {one.id: one for one in report.candidates}
    chosen = costs[report.chosen]
    assert (chosen.cost.kind, chosen.cost.unit, chosen.cost_error) == ("instructions", "instructions", 0.001)
    assert costs["float32"].cost.kind == "instructions"
    assert "by counted instructions" in chosen.reason
    counted = [one for one in costs.values() if one.cost.kind == "instructions" and one.verdict in ("chosen", "fits")]
    assert min(counted, key=lambda one: one.cost.value).id == report.chosen
