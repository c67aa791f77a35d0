"""What the agent's check says of deployments that have not ended, and of the link they wait for."""

from click.testing import CliRunner

from device_agents import __main__
from device_agents.deployment import Deployment, S, State
from device_agents.diagnostics import checks
from device_agents.diagnostics.pending import underway
from device_agents.download.deltas import keep_offers
from device_agents.storage.journal import Journal
from edgekit.bundle.manifest import parse_manifest
from edgekit.deltas.description import Offer
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
    waiting = State(name=S.IDLE, deployment=NEW, note="MeteredError: waiting: the link is metered")
    states = {"digits": waiting, "other": State()}
    said = "digits 2.0.0 in IDLE: MeteredError: waiting: the link is metered"
    assert underway(disk, states) == [said]
    base, result = manifest.file("model").sha256, "b" * 64
    offers = [Offer(base, result, "c" * 64, 10, size) for size in (500, 400)]
    keep_offers(disk, f"incoming/digits/{NEW.digest}", [*offers, Offer("a" * 64, result, "c" * 64, 1, 1)])
    assert underway(disk, states) == [said.replace(":", ", a delta of 410 bytes starts from what is here:", 1)]
    assert underway(disk, {}) == []


def test_check_names_them_and_the_link(tmp_path, monkeypatch):
    """Neither makes the check fail."""
    monkeypatch.setattr(checks, "BROKER_SECONDS", 0.1)
    (tmp_path / "agent.toml").write_text('device = "d"\nfleet = "f"\ntarget = "x86-64"\nmetered = true\n')
    Journal(FolderDisk(tmp_path / "state")).save("digits", State(name=S.DOWNLOADING, deployment=NEW))
    done = CliRunner().invoke(__main__.agent, ["check", "--config", str(tmp_path / "agent.toml")])
    rows = {line.split()[0]: line for line in done.output.splitlines() if line}
    assert rows["deployments"].split() == ["deployments", "ok", "digits", "2.0.0", "in", "DOWNLOADING"]
    assert " ".join(rows["link"].split()) == "link ok metered: deployments wait for another link"
