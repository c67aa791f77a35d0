"""An application that embeds the service without an agent: a bundle with wrong golden answers is not activated."""

import numpy as np
import pytest

from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import ROLE_GOLDEN
from edgekit.errors import ManifestError, NotFoundError, SelfTestError
from edgekit.serving.models.options import ModelOptions
from tests.simulators.small_models import SURE, onnx_bundle, softmax


def write(folder, version, **kwargs):
    """A bundle and its folder."""
    return onnx_bundle(folder / version, version=version, **kwargs), folder / version


async def version_of(service):
    """The version of the bundle that answers."""
    return (await service.infer("small", {"x": SURE})).version


@pytest.mark.parametrize("swap", ["load-first", "unload-first"])
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_bundle_that_answers_wrongly_is_not_switched_to(tmp_path, swap, isolation):
    """The error says by how much, and the one before goes on; what was loaded for it is freed."""
    async with InferenceService(options=ModelOptions(swap=swap, isolation=isolation)) as service:
        await service.activate("small", *write(tmp_path, "1.0.0"))
        with pytest.raises(SelfTestError, match=r"small 2\.0\.0 failed its self-test on .*scores"):
            await service.activate("small", *write(tmp_path, "2.0.0", golden_gain=0.5))
        assert await version_of(service) == "1.0.0"
        assert service.counters()["small"]["swaps"] == 1
        await service.activate("small", *write(tmp_path, "3.0.0"))
        assert await version_of(service) == "3.0.0"


async def test_a_first_bundle_that_answers_wrongly_leaves_none(tmp_path):
    """Nobody is answered by it."""
    async with InferenceService() as service:
        with pytest.raises(SelfTestError):
            await service.activate("small", *write(tmp_path, "1.0.0", golden_gain=0.5))
        assert service.models() == []
        assert service.ready()
        with pytest.raises(NotFoundError):
            await service.infer("small", {"x": SURE})


async def test_damaged_golden_samples_are_no_reason_to_trust_a_bundle(tmp_path):
    """Though the model would run."""
    manifest, folder = write(tmp_path, "1.0.0")
    (folder / manifest.file(ROLE_GOLDEN).path).write_bytes(b"nonsense")
    async with InferenceService() as service:
        with pytest.raises(ManifestError):
            await service.activate("small", manifest, folder)
        assert service.models() == []


async def test_who_has_compared_already_need_not_do_it_again(tmp_path):
    """The agent's way: the test was made when the bundle was staged."""
    async with InferenceService() as service:
        await service.activate("small", *write(tmp_path, "1.0.0", golden_gain=0.5), compare=False)
        found = await service.infer("small", {"x": SURE})
        np.testing.assert_allclose(found.outputs["scores"], softmax(SURE), atol=1e-6)
        with pytest.raises(SelfTestError):
            await service.self_test("small")
