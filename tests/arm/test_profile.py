"""Instruction counts of the real aarch64 wheels on emulated cores. Run: make arm && make test-arm."""

import numpy as np
import pytest

from converters.cost.emulated.cores import CORES
from converters.cost.measuring.process import Measuring
from converters.cost.profile import profile_bundle
from tests.arm import prepare
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
