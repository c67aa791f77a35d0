"""The cloud tier from settings whose files are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.assembly.serving import make_inference
from tests.device_agents.diagnostics.test_cloud_check import device, tier
from tests.device_agents.inference.test_service import where
from tests.simulators.small_models import UNSURE, onnx_bundle


@pytest.mark.parametrize("damage", ["missing", "empty", "no text"])
async def test_a_key_file_that_cannot_be_read_stops_no_model_and_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The agent did not start, so that nobody could ask it anything; an empty file was taken for no key."""
    async with tier(tmp_path / "tier") as url:
        settings = device(tmp_path, url, cloud_model="big")
        file = settings.cloud_api_key_file
        assert file is not None
        key = file.read_bytes()
        file.unlink() if damage == "missing" else file.write_bytes(b"" if damage == "empty" else b"\xff\xfe")
        service, cloud = make_inference(settings)
        assert cloud is not None
        async with service:
            await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
            assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "cloud-failed")
            file.write_bytes(key)
            assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
        cloud.close()
    assert f"API key file {file}" in caplog.text
    assert "models answer locally meanwhile" in caplog.text


async def test_a_damaged_authority_stops_no_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is sent without it."""
    (tmp_path / "ca.pem").write_text("garbage")
    settings = device(tmp_path, "https://127.0.0.1:1", cloud_ca=tmp_path / "ca.pem", cloud_api_key_file=None)
    service, cloud = make_inference(settings)
    assert cloud is not None
    async with service:
        await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
        assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "cloud-failed")
    cloud.close()
    assert "ca.pem cannot be used for TLS" in caplog.text
