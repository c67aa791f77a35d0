"""Settings that were changed remotely: the file, the trial of a change, and its end."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from device_agents.assembly.control import agent_options
from device_agents.remote.overlay import OVERLAY_NAME, Overlay, RemoteSettings, load_agent_settings, with_values
from device_agents.remote.overlay_rules import OverlayRecord, changed, confirmed, started
from edgekit.errors import SettingsError
from edgekit.mqtt.command_arguments import SetArguments
from edgekit.mqtt.remote_settings import SETTABLE
from edgekit.settings import AgentSettings
from edgekit.storage.disk import FolderDisk

GOOD = OverlayRecord({"threads": "2"})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "agent.toml").write_text('device = "d"\nfleet = "f"\ntarget = "t"\nheartbeat_seconds = 5\n')
    return tmp_path / "agent.toml"


def overlay(config: Path) -> Overlay:
    return Overlay(FolderDisk(config.parent / "state"))


def test_a_change_is_tried_kept_or_taken_back() -> None:
    """Three starts without a connection end the trial; the values before it return, and a success keeps it."""
    record = changed(GOOD, {"threads": "64", "queue_limit": "9"})
    assert record.values == {"threads": "64", "queue_limit": "9"}
    assert confirmed(record) == OverlayRecord(record.values)
    for _ in range(3):
        record = started(record)
        assert record.values["threads"] == "64"
    assert started(record) == GOOD
    assert started(GOOD) == GOOD, "a proven change is not counted"


def test_changes_during_a_trial_return_to_the_last_proven_values() -> None:
    """The second of two changes is no proof of the first."""
    record = changed(changed(GOOD, {"threads": "64"}), {"queue_limit": "9"})
    assert record.previous == GOOD.values


def test_an_empty_value_takes_a_change_back() -> None:
    """The last one leaves an empty record; what was not set stays out."""
    assert changed(GOOD, {"threads": "", "queue_limit": ""}).values == {}
    assert changed(GOOD, {"queue_limit": ""}) == GOOD


async def test_values_survive_and_win_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over the environment, but not over a flag of the start; taken back, the file counts again."""
    monkeypatch.setenv("EDGEKIT_HEARTBEAT_SECONDS", "6")
    await set_values(config, heartbeat_seconds="7.5")
    settings, found = load_agent_settings(config, {}, start=False)
    assert (settings.heartbeat_seconds, found.fault) == (7.5, "")
    assert load_agent_settings(config, {"heartbeat_seconds": 8.0}, start=False)[0].heartbeat_seconds == 8.0
    await set_values(config, heartbeat_seconds="")
    assert load_agent_settings(config, {}, start=False)[0].heartbeat_seconds == 6
    overlay(config).confirm()
    assert not (config.parent / "state" / OVERLAY_NAME).exists()


async def set_values(config: Path, **values: str) -> str:
    remote = RemoteSettings(
        overlay(config), lambda found: agent_options(with_values(config, {}, found)), restartable=True
    )
    return (await remote.answer(SetArguments(values))).message


@pytest.mark.parametrize("values", [{"threads": "0"}, {"threads": "two"}, {"quiet_hours": "25:00-26:00"}])
async def test_a_bad_value_changes_nothing(config: Path, values: dict[str, str]) -> None:
    """Good values beside it are not stored either."""
    with pytest.raises(SettingsError):
        await set_values(config, heartbeat_seconds="9", **values)
    assert overlay(config).record == OverlayRecord()


@pytest.mark.parametrize("name", SETTABLE)
async def test_every_settable_key_can_be_set_to_its_default(config: Path, name: str) -> None:
    """As text, as the command sends it."""
    default = {field.name: field.default for field in msgspec.structs.fields(AgentSettings)}[name]
    text = str(default).lower() if isinstance(default, bool) else str(default) or "08:00-09:00"
    assert f"{name} = {text}" in await set_values(config, **{name: text})
    assert load_agent_settings(config, {}, start=False)[1].fault == ""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"values": {"cloud_url": "http://x"}}', '{"format": 9}', '{"values": {"threads": "0"}}', "\xff"],
)
def test_a_bad_file_is_not_used_and_named(config: Path, text: str) -> None:
    """The agent starts with its own settings; nothing that may not be set gets in by way of the file."""
    (config.parent / "state" / OVERLAY_NAME).write_text(text, encoding="latin-1")
    settings, found = load_agent_settings(config, {}, start=True)
    assert (settings.threads, settings.cloud_url) == (1, "")
    assert found.fault.startswith("the remote settings ")


async def test_a_start_that_never_connects_ends_the_trial(config: Path) -> None:
    """The fourth start has the old settings, and knows what it took back."""
    await set_values(config, threads="3")
    for _ in range(3):
        assert load_agent_settings(config, {}, start=True)[0].threads == 3
    settings, found = load_agent_settings(config, {}, start=True)
    assert (settings.threads, found.reverted) == (1, {"threads": "3"})
    assert load_agent_settings(config, {}, start=True)[1].reverted == {}


async def test_checks_and_other_reads_count_no_start(config: Path) -> None:
    """`edgekit-agent check` may be run as often as one likes."""
    await set_values(config, threads="3")
    for _ in range(9):
        assert load_agent_settings(config, {}, start=False)[0].threads == 3
    stored = json.loads((config.parent / "state" / OVERLAY_NAME).read_bytes())
    assert (stored["starts"], stored["previous"]) == (0, {})
