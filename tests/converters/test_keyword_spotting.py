"""The keyword spotting model of MLPerf Tiny, where its files are beside the repository."""

from pathlib import Path

import numpy as np
import pytest

from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
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
    assert report.test.chosen >= report.test.float_ - 0.01
    assert report.route.reason == "the direct file is no better than the lowered one"
    assert report.chosen_candidate.bytes <= 24_000 < (FOLDER / "reference_int8.tflite").stat().st_size / 2
    folder = Path(report.bundle)
    runtime = open_runtime(parse_manifest((folder / MANIFEST_NAME).read_bytes()), folder)
    test = np.load(FOLDER / "test.npz")
    [answers] = runtime.run({runtime.inputs[0].name: test["x"][:100]}).values()
    runtime.close()
    assert np.mean(np.argmax(answers, axis=1) == test["y"][:100]) > 0.85
