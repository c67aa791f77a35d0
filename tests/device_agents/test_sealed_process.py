"""The real agent as a process with a class key: the files that it writes are encrypted."""

import msgspec

from edgekit.bundle.manifest import MANIFEST_NAME, file_entry
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.values import RolloutState
from edgekit.sealing.bundles import seal_bundle
from edgekit.sealing.class_keys import add_class, class_path, content_secret, find_class
from edgekit.trust.keys import generate_key
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.small_models import onnx_bundle

TARGET = "x86-64"


def enroll(side, *class_keys):
    folder = side.folder / "pi-1"
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(side.root)
    for path in class_keys:
        (folder / path.name).touch(mode=0o600)
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "agent.toml").write_text(
        f'device = "pi-1"\nfleet = "{FLEET}"\ntarget = "{TARGET}"\nbroker = "{side.url}"\nhttp = "127.0.0.1:0"\n'
        f'isolation = "process"\nprobation_seconds = 0.1\n'
        f"class_keys = [{', '.join(repr(path.name) for path in class_keys)}]\n"
    )
    pem = (folder / "device.pub").read_text()
    side.state.devices.enroll(Device("pi-1", TARGET, pem, enrolled=side.clock.wall()))
    return AgentProcess(folder)


def publish_sealed(side, version):
    """Publish a version for class ``cameras``; returns its plain files."""
    folder, keys = side.folder / "made" / version, side.folder / "keys"
    manifest = onnx_bundle(folder, version=version)
    labels = f"a label of {version} ".encode() * 10_000
    (folder / "labels.bin").write_bytes(labels)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, file_entry("labels.bin", "labels", labels)))
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    out = side.folder / "sealed" / version
    seal_bundle(folder, manifest, out, classes=[find_class(keys, "cameras")], secret=content_secret(keys))
    publish(side.store, side.repository, out)
    return [(folder / entry.path).read_bytes() for entry in manifest.files]


def holders(folder, secrets):
    """Files below `folder` that hold 32 bytes of one of `secrets` as they are."""
    probes = [secret[at : at + 32] for secret in secrets for at in (0, len(secret) // 2)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(probe in path.read_bytes() for probe in probes)]


# The agent's process starts four times, and two probations run for seconds: about 12 s.
async def test_a_class_key_in_its_settings_is_all_that_an_agent_needs(tmp_path):
    """Its worker processes open bundles too; after a SIGKILL it answers; without the key it says what it lacks.

    When the key is back, what was installed answers again.
    """
    for name in ("cameras", "doors"):
        add_class(tmp_path / "keys", name)
    async with (
        await start_broker("127.0.0.1", 0, tmp_path / "broker") as broker,
        ControlSide(tmp_path, broker.url) as side,
    ):
        agent = enroll(side, class_path(tmp_path / "keys", "cameras"))
        await agent.start()
        try:
            secrets = []
            for version in ("1.0.0", "1.1.0"):
                secrets += publish_sealed(side, version)
                side.start("small", version, TARGET)
                await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
                assert await agent.ask("small") == version
            await agent.kill()
            await agent.start()
            assert await agent.ask("small") == "1.1.0"
        finally:
            await agent.end()
        assert len(holders(tmp_path / "made", secrets)) >= 6
        assert holders(agent.folder, secrets) == holders(tmp_path / "registry", secrets) == []
        settings = (agent.folder / "agent.toml").read_text()
        (agent.folder / "agent.toml").write_text(settings.replace("['cameras.key']", "[]"))
        publish_sealed(side, "1.2.0")
        await agent.start()
        try:
            side.start("small", "1.2.0", TARGET)
            await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
            reason = side.rollout().devices["pi-1"].reason
            assert "sealed for device class cameras" in reason
            assert "this device has no class key" in reason
        finally:
            await agent.end()
        (agent.folder / "agent.toml").write_text(settings)
        await agent.start()
        try:
            assert await agent.ask("small") == "1.1.0"
        finally:
            await agent.end()
