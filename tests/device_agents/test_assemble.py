"""Building an agent from settings, also after the loss of its state folder."""

import shutil
import time

import pytest

from device_agents.assemble import make_agent, make_inference
from device_agents.facts import measure_facts
from device_agents.storage.journal import Journal
from edgekit.errors import SettingsError
from edgekit.serving.worker.runtime import WorkerRuntime
from edgekit.settings import AgentSettings, load_settings
from edgekit.storage.disk import FolderDisk
from edgekit.trust.keys import generate_key
from tests.simulators.small_models import onnx_bundle


async def test_a_lost_state_folder_does_not_make_a_device_say_older_things(tmp_path):
    """Numbers begin at the clock, so that a device that is written anew with its old key is still listened to."""
    generate_key(tmp_path / "device.key")
    (tmp_path / "root.json").write_bytes(b"{}")
    settings = AgentSettings(
        device="pi-1",
        fleet="f",
        target="raspberry-pi-4",
        state=tmp_path / "state",
        key=tmp_path / "device.key",
        root=tmp_path / "root.json",
    )
    begun, seen = int(time.time()), []
    for _ in range(2):
        inference, _cloud = make_inference(settings)
        make_agent(settings, inference, measure_facts(settings.target))
        record = Journal(FolderDisk(settings.state)).record
        seen.append((record.session, record.reports))
        shutil.rmtree(settings.state)
    assert begun < seen[0][0] <= seen[1][0]
    assert begun <= seen[0][1] <= seen[1][1]


async def test_how_models_are_served_comes_from_the_settings(tmp_path):
    """The agent's own for all, and a table for what is different for one; an unknown key there is named."""
    (tmp_path / "agent.toml").write_text(
        """
        device = "pi-1"
        fleet = "f"
        target = "x86-64"
        memory_budget_mib = 64
        queue_limit = 7
        batch = 1
        isolation = "process"
        providers = ["CPUExecutionProvider"]
        require_providers = true

        [models.small]
        pinned = true
        instances = 2
        isolation = "thread"
        """
    )
    settings = load_settings(AgentSettings, file=tmp_path / "agent.toml", environ={})
    inference, _ = make_inference(settings)
    for name in ("small", "other"):
        await inference.activate(name, onnx_bundle(tmp_path / name, name=name), tmp_path / name)
    small, other = (inference._manager.get(name) for name in ("small", "other"))
    assert (small.options.pinned, small.options.instances, small.options.queue_limit) == (True, 2, 7)
    assert (other.options.pinned, other.options.instances, other.options.isolation) == (False, 1, "process")
    assert isinstance(other.session.runtime, WorkerRuntime)
    assert not isinstance(small.session.runtime, WorkerRuntime)
    assert inference.describe("other", None).providers_missing == ()
    assert (settings.state / "footprints.json").exists()
    await inference.close()
    (tmp_path / "agent.toml").write_text('device = "d"\nfleet = "f"\ntarget = "t"\n[models.small]\npined = true\n')
    with pytest.raises(SettingsError, match="pined"):
        load_settings(AgentSettings, file=tmp_path / "agent.toml", environ={})
