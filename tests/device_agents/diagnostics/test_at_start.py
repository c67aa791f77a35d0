"""The agent compares itself with the cloud tier when it starts, and logs what differs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from device_agents.diagnostics.at_start import check_at_start
from device_agents.diagnostics.checks import checks_of
from edgekit.errors import CloudError
from edgekit.serving.models.options import ModelSettings
from edgekit.settings import AgentSettings
from edgekit.storage.stores import open_store
from edgekit.trust.keys import generate_key
from edgekit.trust.repository import Repository
from tests.device_agents.diagnostics.test_cloud_check import device, tier
from tests.simulators.agent_process import AgentProcess
from tests.simulators.ports import free_port


async def said(settings: AgentSettings, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="device_agents.diagnostics.at_start"):
        check = checks_of(settings, folder / "agent.toml")["cloud tier"]
        await asyncio.wait_for(check_at_start(check, spread_seconds=0.0), 30)
    return [record.message for record in caplog.records if record.name == "device_agents.diagnostics.at_start"]


async def test_what_differs_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every fault in one warning, with what to do; a tier that fits is named."""
    async with tier(tmp_path / "tier") as url:
        assert await said(device(tmp_path, url, cloud_model="big"), tmp_path, caplog) == [
            "cloud tier: small is big 1.0.0 there"
        ]
        own = {"small": ModelSettings(cloud_model="odd"), "extra": ModelSettings(cloud_model="none")}
        (line,) = await said(device(tmp_path, url, models=own), tmp_path, caplog)
    assert "it has no model 'none' (404" in line
    assert "model 'odd': input 'x' is missing" in line
    assert line.endswith("Correct the cloud tier or the agent's settings cloud_*.")


async def test_a_tier_that_is_away_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once that it is away, and then what was found."""
    asked = 0

    def check() -> str:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise CloudError("the cloud tier cannot be reached")
        return "small is big 1.0.0 there"

    with caplog.at_level(logging.INFO, logger="device_agents.diagnostics.at_start"):
        await asyncio.wait_for(check_at_start(check, spread_seconds=0.0), 30)
    assert asked == 3
    assert [record.message for record in caplog.records] == [
        "cloud tier: the cloud tier cannot be reached; models answer locally meanwhile",
        "cloud tier: small is big 1.0.0 there",
    ]


async def test_the_agent_does_it_when_it_starts(tmp_path: Path) -> None:
    """A real agent, whose broker is away, with a wrong key for a real tier: its log says so."""
    repository = Repository(open_store(f"file://{tmp_path}/registry"), tmp_path / "keys")
    repository.create()
    folder = tmp_path / "pi-1"
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes((tmp_path / "keys" / "root.json").read_bytes())
    (folder / "cloud.key").touch(mode=0o600)
    (folder / "cloud.key").write_text("a-key-that-is-wrong")
    async with tier(tmp_path / "tier") as url:
        (folder / "agent.toml").write_text(
            f'device = "pi-1"\nfleet = "f"\ntarget = "x86-64"\nbroker = "mqtt://127.0.0.1:{free_port()}"\n'
            f'http = "127.0.0.1:0"\ncloud_url = "{url}"\ncloud_api_key_file = "cloud.key"\n[models.big]\n'
        )
        agent = AgentProcess(folder)
        await agent.start()
        try:
            for _ in range(300):
                if "cloud tier: " in agent.log():
                    break
                await asyncio.sleep(0.1)
        finally:
            await agent.kill()
    assert "cloud tier: it refuses the API key (401: the API key is missing or wrong" in agent.log()
