import numpy as np
import pytest

from converters.calibration import Histogram, calibrate
from converters.frontends.onnx import canonical
from converters.samples import Samples
from edgekit.errors import CalibrationError
from tests.simulators import models


def test_histograms_merge_to_the_histogram_of_everything():
    """Merging parts of very different scale gives exactly what one pass over all would."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, scale, 200) for scale in (0.01, 1.0, 300.0)]
    merged = Histogram.of(parts[0]).merged(Histogram.of(parts[1])).merged(Histogram.of(parts[2]))
    whole = Histogram.of(np.concatenate(parts))
    assert (merged.minimum, merged.maximum, merged.exponent) == (whole.minimum, whole.maximum, whole.exponent)
    np.testing.assert_array_equal(merged.counts, whole.counts)


def test_histogram_of_zeros_merges():
    """A tensor that is always zero has a range of zero and merges with any other."""
    merged = Histogram.of(np.zeros(10)).merged(Histogram.of(np.array([5.0, -3.0])))
    assert (merged.minimum, merged.maximum, int(merged.counts.sum())) == (-3.0, 5.0, 12)


def test_calibration_of_halves_is_that_of_the_whole():
    """Data can be calibrated in parts."""
    graph = canonical(models.classifier(), "test")
    x = np.random.default_rng(1).random((40, 1, 8, 8)).astype(np.float32)
    whole = calibrate(graph, Samples({"image": x}))
    halves = calibrate(graph, Samples({"image": x[:20]})).merged(calibrate(graph, Samples({"image": x[20:]})))
    assert halves.rows == whole.rows == 40
    assert set(whole.tensors) >= {"image", "c", "r", "scores"}
    for name, (low, high) in whole.ranges().items():
        np.testing.assert_allclose(halves.ranges()[name], (low, high), rtol=1e-5, atol=1e-6)


def test_infinite_tensor_is_named():
    """Samples that overflow a tensor are refused with its name."""
    graph = canonical(models.classifier(), "test")
    with pytest.raises(CalibrationError, match="tensor c "):
        calibrate(graph, Samples({"image": np.full((2, 1, 8, 8), 3e38, np.float32)}))
