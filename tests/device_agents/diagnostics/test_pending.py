"""The lines of `edgekit-agent check` about unfinished deployments and about the metered link."""

from device_agents.deployment import Deployment, UpdateRecord, UpdateState
from device_agents.diagnostics.checks import checks_of
from device_agents.diagnostics.pending import pending_deployments
from device_agents.download.deltas import save_offers
from device_agents.storage.journal import Journal
from edgekit.bundle.manifest import parse_manifest
from edgekit.deltas.description import Offer
from edgekit.settings import AgentSettings
from edgekit.storage.disk import FolderDisk
from tests.simulators.bundles import write_bundle

NEW = Deployment("f" * 64, 100, "path", "digits", "2.0.0", "pi", 2, 1)


def test_a_delta_helps_where_its_base_is_in_a_slot(tmp_path):
    """The smallest of those is named; with none, none is."""
    disk = FolderDisk(tmp_path / "state")
    bundle = write_bundle(tmp_path, "digits", "1.0.0", "pi", b"model")
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    for path in bundle.iterdir():
        disk.write(f"models/digits/a/{path.name}", path.read_bytes())
    waiting = UpdateRecord(name=UpdateState.IDLE, deployment=NEW, note="MeteredError: waiting: the link is metered")
    states = {"digits": waiting, "other": UpdateRecord()}
    said = "digits 2.0.0 in IDLE: MeteredError: waiting: the link is metered"
    assert pending_deployments(disk, states) == [said]
    base, result = manifest.file("model").sha256, "b" * 64
    offers = [Offer(base, result, "c" * 64, 10, size) for size in (500, 400)]
    save_offers(disk, f"incoming/digits/{NEW.digest}", [*offers, Offer("a" * 64, result, "c" * 64, 1, 1)])
    assert pending_deployments(disk, states) == [said.replace(":", ", a delta of 410 bytes can be used:", 1)]
    assert pending_deployments(disk, {}) == []


def test_check_names_them_and_the_link(tmp_path):
    """Neither makes the check fail."""
    settings = AgentSettings(device="d", fleet="f", target="x86-64", metered=True, state=tmp_path / "state")
    Journal(FolderDisk(settings.state)).save("digits", UpdateRecord(name=UpdateState.DOWNLOADING, deployment=NEW))
    checks = checks_of(settings, tmp_path / "agent.toml")
    assert checks["deployments"]() == "digits 2.0.0 in DOWNLOADING"
    assert checks["link"]() == "metered: deployments wait for a link that is not metered"
