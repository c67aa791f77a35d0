"""What the owner's settings hold back from the cloud tier: offline, metered links, daily budgets."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from device_agents.assembly.cloud import endpoint_hold
from device_agents.assembly.serving import make_inference
from device_agents.inference.cloud.budget_rules import DAY_SECONDS
from device_agents.inference.cloud.budgets import FILE_NAME
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.errors import DiskError, SettingsError, UnavailableError
from edgekit.serving.models.options import ModelSettings
from edgekit.storage.disk import FolderDisk
from tests.device_agents.diagnostics.test_cloud_check import device, found, tier
from tests.device_agents.inference.test_service import HeldClock, where
from tests.simulators.cloud import CLOUD_OUTPUTS, MemoryCloud
from tests.simulators.disk import FaultyDisk
from tests.simulators.small_models import UNSURE, onnx_bundle

NAN = np.full_like(UNSURE, np.nan)


class WallClock(HeldClock):
    """A held clock whose wall time moves too."""

    def wall(self) -> float:
        return self.now


async def test_offline_and_metered_devices_answer_locally_and_say_why(tmp_path: Path) -> None:
    """Against a real cloud tier: by the file, by the setting, and `check` names it; without them the tier answers."""
    file, link = tmp_path / "offline", tmp_path / "metered"
    async with tier(tmp_path / "tier") as url:
        settings = device(tmp_path, url, cloud_model="big", offline_file=file, metered_file=link)
        service, cloud = make_inference(settings)
        assert cloud is not None
        async with service:
            await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
            assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
            file.touch()
            assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "offline")
            with pytest.raises(UnavailableError, match="offline_file"):
                await service.infer("small", {"x": UNSURE}, route="cloud-only")
            assert await found(settings, tmp_path, "fallback") == f"{url}; not called now: offline"
            assert (await found(settings, tmp_path)).startswith("not asked")
            file.unlink()
            link.touch()
            assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "metered")
            assert await found(settings, tmp_path, "fallback") == f"{url}; not called now: metered"
            link.unlink()
            assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
            counters = service.counters()["small"]
        cloud.close()
        allowed = device(tmp_path, url, metered=True, metered_fallback=True)
        assert await found(allowed, tmp_path, "fallback") == url
        assert (await found(device(tmp_path, url, offline=True), tmp_path, "fallback")).endswith("offline")
    assert (counters["cloud_failures.offline"], counters["cloud_failures.metered"]) == (2, 1)


async def test_an_api_key_does_not_travel_unencrypted_unless_the_owner_says_so(tmp_path: Path) -> None:
    """Over http:// to another host no call is made; https, loopback, no key, and `cloud_unencrypted` are fine."""
    url = "http://192.0.2.1:8700"  # an address for documentation: a call would wait for its time-out
    settings = device(tmp_path, url, cloud_timeout_seconds=30.0)
    service, cloud = make_inference(settings)
    assert cloud is not None
    async with service:
        await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
        assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "unencrypted")
        with pytest.raises(UnavailableError, match="cloud_unencrypted = true"):
            await service.infer("small", {"x": UNSURE}, route="cloud-only")
    cloud.close()
    with pytest.raises(SettingsError, match=rf"{url}: the API key would travel unencrypted"):
        await found(settings, tmp_path, "fallback")
    assert (await found(settings, tmp_path)).startswith("not asked")
    for fine in (
        device(tmp_path, url, cloud_unencrypted=True),
        device(tmp_path, url, cloud_api_key_file=None),
        device(tmp_path, "https://192.0.2.1:8700"),
        device(tmp_path, "http://localhost:8700"),
        device(tmp_path, "http://[::1]:8700"),
    ):
        assert isinstance(fine.cloud_url, str)
        assert endpoint_hold(fine, fine.cloud_url) is None


async def test_a_spent_budget_keeps_answers_here_until_the_next_day_and_over_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit holds, is told once, survives a stop and a loss of power, and ends after a day."""
    cloud, clock, told = MemoryCloud(CLOUD_OUTPUTS), WallClock(), []

    def made() -> InferenceService:
        options = ServiceOptions(cloud_calls_per_day=3)
        service = InferenceService(cloud=cloud, clock=clock, service=options, disk=FolderDisk(tmp_path))
        service.listen_budgets(lambda *news: told.append(news[:2]))
        return service

    async def ask(service: InferenceService, count: int) -> list[tuple[str, str]]:
        await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
        return [where(await service.infer("small", {"x": NAN})) for _ in range(count)]

    sent, kept = ("cloud", "local-error"), ("degraded", "budget-spent")
    async with made() as service:
        assert await ask(service, 1) == [sent]
    without_power = made()
    assert await ask(without_power, 1) == [sent]
    with caplog.at_level(logging.WARNING):
        async with made() as service:
            assert await ask(service, 4) == [sent, kept, kept, kept]
            assert told == [("cloud-budget-spent", "")]
            assert len([one for one in caplog.messages if "is spent: 3 calls" in one]) == 1
            assert service.counters()["small"]["cloud_failures.budget-spent"] == 3
            clock.now += DAY_SECONDS
            assert await ask(service, 1) == [sent]
    await without_power.close()
    assert len(cloud.asked) == 4


@pytest.mark.parametrize("limit", ["cloud_calls_per_day", "cloud_bytes_per_day"])
async def test_a_budget_with_one_limit_is_not_written_with_every_call(tmp_path: Path, limit: str) -> None:
    """It would wear a card out; the reserve covers the calls until the next write."""
    writes = []
    disk = FaultyDisk(fault=lambda change, method, name: writes.append(name))
    service = InferenceService(
        cloud=MemoryCloud(CLOUD_OUTPUTS), service=ServiceOptions(**{limit: 1_000_000}), disk=disk
    )
    async with service:
        await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
        for _ in range(40):
            assert where(await service.infer("small", {"x": NAN})) == ("cloud", "local-error")
        assert writes.count(FILE_NAME) == 1


async def test_a_budget_that_cannot_be_stored_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk took a line of the log for each call; the limit holds meanwhile."""

    def full(change: int, method: str, name: str) -> None:
        raise DiskError("no space left on device")

    options, disk = ServiceOptions(cloud_calls_per_day=20), FaultyDisk(fault=full)
    async with InferenceService(cloud=MemoryCloud(CLOUD_OUTPUTS), service=options, disk=disk) as service:
        await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
        routes = [where(await service.infer("small", {"x": NAN}))[1] for _ in range(25)]
    assert routes == ["local-error"] * 20 + ["budget-spent"] * 5
    assert caplog.text.count("budget cannot be stored") == 1


async def test_a_budget_that_burns_too_fast_keeps_surer_answers(tmp_path: Path) -> None:
    """Each model has its own budget beside that of the device; another model's calls do not count in it."""
    cloud, own = MemoryCloud(CLOUD_OUTPUTS), {"small": ModelSettings(cloud_calls_per_day=10)}
    async with InferenceService(cloud=cloud, clock=WallClock(), models=own) as service:
        for name in ("small", "free"):
            await service.activate(name, onnx_bundle(tmp_path / name, name=name), tmp_path / name)
        reasons = [where(await service.infer("small", {"x": UNSURE})) for _ in range(10)]
        score = (await service.infer("small", {"x": UNSURE})).parameters["edgekit_score"]
        assert where(await service.infer("small", {"x": NAN})) == ("cloud", "local-error")
        for _ in range(12):
            assert where(await service.infer("free", {"x": UNSURE})) == ("cloud", "low-score")
    sent = reasons.count(("cloud", "low-score"))
    assert reasons == [("cloud", "low-score")] * sent + [("degraded", "budget-pace")] * (10 - sent)
    assert (1 - sent / 10) ** 8 <= score < (1 - (sent - 1) / 10) ** 8


@pytest.mark.parametrize("damage", [b'{"": {"calls": -1}}', b'{"\xff": {}}'])
async def test_bytes_are_counted_and_a_damaged_file_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    """A request that is larger than what is left is not sent."""
    (tmp_path / FILE_NAME).write_bytes(damage)
    cloud, options = MemoryCloud(CLOUD_OUTPUTS), ServiceOptions(cloud_bytes_per_day=NAN.nbytes * 2 + 1)
    async with InferenceService(cloud=cloud, clock=WallClock(), service=options, disk=FolderDisk(tmp_path)) as service:
        await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
        routes = [where(await service.infer("small", {"x": NAN}))[0] for _ in range(3)]
    assert routes == ["cloud", "cloud", "degraded"]
    assert any("cloud-budget.json cannot be read" in one for one in caplog.messages)
