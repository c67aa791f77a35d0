"""Building an agent from settings: what a device keeps, and what becomes of it when that is lost."""

import shutil
import time

from device_agents.assemble import make_agent, make_inference
from device_agents.facts import measure_facts
from device_agents.journal import Journal
from edgekit.disk import FolderDisk
from edgekit.settings import AgentSettings
from edgekit.trust.keys import generate_key


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
