"""The spool from settings: without a key nothing stays, a bad key is refused, a failing disk stops no agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from device_agents.assembly.control import make_agent
from device_agents.facts import measure_facts
from device_agents.inference.service import InferenceService
from device_agents.spool.making import make_spool
from device_agents.spool.store import FOLDER, NEW
from edgekit.errors import DiskError, SettingsError
from edgekit.sealing.message_keys import add_message_key
from edgekit.settings import AgentSettings
from edgekit.trust.keys import generate_key, public_path
from edgekit.trust.repository import Repository
from tests.simulators.disk import FaultyDisk
from tests.simulators.store import MemoryStore


def settings(**fields: object) -> AgentSettings:
    return AgentSettings(device="pi-1", fleet="f", target="x86-64", **fields)  # type: ignore[arg-type]


async def test_without_a_key_stored_samples_are_removed() -> None:
    """The owner took the key away."""
    disk = FaultyDisk()
    disk.write(f"{FOLDER}/4{'0' * 25}", b"sealed")
    async with InferenceService() as inference:
        assert make_spool(settings(), inference, disk, str) is None
    assert disk.list(FOLDER) == []


async def test_a_key_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    """No file, another kind, and a point whose secrets everybody knows."""
    weak = X25519PublicKey.from_public_bytes(bytes(32)).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "weak.pub").write_bytes(weak)
    (tmp_path / "text.pub").write_text("hello")
    async with InferenceService() as inference:
        for name in ("weak.pub", "text.pub", "none.pub"):
            with pytest.raises(SettingsError, match=name):
                make_spool(settings(sample_key=tmp_path / name), inference, FaultyDisk(), str)


async def test_a_failing_disk_stops_no_agent(tmp_path: Path) -> None:
    """A half-written file that cannot be removed is no fault; a folder that cannot be read gives no spool."""
    public = public_path(add_message_key(tmp_path))

    def worn(change: int, method: str, name: str) -> None:
        raise DiskError("read-only file system")

    disk = FaultyDisk(fault=worn)
    disk.files[NEW] = b"half"
    async with InferenceService() as inference:
        assert make_spool(settings(sample_key=public), inference, disk, str) is not None
        disk.list = lambda name: worn(0, "list", name)  # type: ignore[method-assign,assignment,return-value]
        assert make_spool(settings(sample_key=public), inference, disk, str) is None


async def test_a_damaged_key_stops_no_agent_and_removes_no_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that a loss of power emptied ended the agent after its first answers, again and again."""
    generate_key(tmp_path / "device.key")
    (tmp_path / "root.json").write_bytes(Repository(MemoryStore(), tmp_path / "keys").create())
    kept = tmp_path / "state" / FOLDER / f"4{'0' * 25}"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"sealed")
    (tmp_path / "samples.pub").touch()
    found = settings(
        key=tmp_path / "device.key",
        root=tmp_path / "root.json",
        state=tmp_path / "state",
        sample_key=tmp_path / "samples.pub",
    )
    async with InferenceService() as inference:
        assert make_agent(found, inference, measure_facts("x86-64")) is not None
    assert kept.read_bytes() == b"sealed"
    assert "no samples are kept: public key" in caplog.text


def test_settings_that_collect_need_a_key() -> None:
    """The error names the key."""
    for fields in ({"collect": ("unsure",)}, {"collect_share": 0.5}):
        with pytest.raises(ValueError, match="sample_key"):
            settings(**fields)
