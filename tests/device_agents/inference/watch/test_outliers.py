"""The gate of inputs out of distribution: which requests and rows go to the cloud tier for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.errors import CloudError
from edgekit.serving.models.options import ModelSettings
from edgekit.serving.oip.codec import InferResponse
from tests.simulators.cloud import CLOUD_OUTPUTS, MemoryCloud
from tests.simulators.drifting import bundle_with_reference
from tests.simulators.small_models import softmax

USUAL = np.array([[4.0, -4.0, -4.0]], np.float32)
STRANGE = np.array([[400.0, -4.0, -4.0]], np.float32)  # the model is as sure of it
UNSURE = np.array([[0.2, 0.1, 0.0]], np.float32)
GATED = ServiceOptions(out_of_distribution="cloud")


def where(response: InferResponse) -> tuple[str, str]:
    return response.parameters["edgekit_route"], response.parameters["edgekit_reason"]


@pytest.fixture
def cloud() -> MemoryCloud:
    return MemoryCloud(CLOUD_OUTPUTS)


async def test_inputs_unlike_the_data_go_to_the_cloud_however_sure_the_model_is(tmp_path: Path, cloud) -> None:
    """A failure of the cloud tier costs no answer, and a request that stays on the device is not judged."""
    manifest = bundle_with_reference(tmp_path, name="small", bounds=True)
    async with InferenceService(cloud=cloud, service=GATED) as service:
        await service.activate("small", manifest, tmp_path)
        assert where(await service.infer("small", {"x": USUAL})) == ("local", "confident")
        found = await service.infer("small", {"x": STRANGE})
        assert (where(found), found.parameters["edgekit_score"]) == (("cloud", "out-of-distribution"), 1.0)
        assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
        assert where(await service.infer("small", {"x": STRANGE}, route="local-only")) == ("local", "requested")
        cloud.fault = CloudError("away")
        assert where(await service.infer("small", {"x": STRANGE})) == ("degraded", "cloud-failed")
        assert service.counters()["small"]["reasons.out-of-distribution"] == 1
        await service.deactivate("small")


async def test_only_the_strange_and_the_unsure_rows_travel(tmp_path: Path, cloud) -> None:
    """The others keep the device's answer; many rows are read in a thread."""
    manifest = bundle_with_reference(tmp_path, name="small", batch=None, bounds=True)
    rows = np.concatenate([USUAL, STRANGE, UNSURE, *[USUAL] * 5])
    cloud.outputs = {name: np.repeat(value, 2, axis=0) for name, value in CLOUD_OUTPUTS.items()}
    async with InferenceService(cloud=cloud, service=GATED) as service:
        await service.activate("small", manifest, tmp_path)
        found = await service.infer("small", {"x": rows})
    assert where(found) == ("cloud", "out-of-distribution")
    np.testing.assert_array_equal(cloud.asked[0][1]["x"], rows[1:3])
    assert found.parameters["edgekit_cloud_rows"] == 2
    np.testing.assert_allclose(found.outputs["scores"][0], softmax(USUAL)[0], atol=1e-6)
    np.testing.assert_array_equal(found.outputs["scores"][1:3], cloud.outputs["scores"])


async def test_the_owner_asks_for_it_for_all_models_or_for_one(tmp_path: Path, cloud) -> None:
    """By default the score decides."""
    manifest = bundle_with_reference(tmp_path, name="small", bounds=True)
    for service_options, own, reason in (
        (ServiceOptions(), None, "confident"),
        (ServiceOptions(), "cloud", "out-of-distribution"),
        (GATED, "ignore", "confident"),
    ):
        models = {"small": ModelSettings(out_of_distribution=own)}
        async with InferenceService(cloud=cloud, service=service_options, models=models) as service:
            await service.activate("small", manifest, tmp_path)
            assert where(await service.infer("small", {"x": STRANGE}))[1] == reason


async def test_a_bundle_without_bounds_is_served_and_the_log_says_that_nothing_is_judged(
    tmp_path: Path, cloud, caplog: pytest.LogCaptureFixture
) -> None:
    """One of an earlier release, or of too few data."""
    manifest = bundle_with_reference(tmp_path, name="small")
    async with InferenceService(cloud=cloud, service=GATED) as service:
        await service.activate("small", manifest, tmp_path)
        assert where(await service.infer("small", {"x": STRANGE})) == ("local", "confident")
    assert any("no bounds in its bundle; convert it with at least" in one for one in caplog.messages)
