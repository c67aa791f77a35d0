"""The line of `edgekit-agent check` about the versions of runtimes."""

import msgspec
import pytest

from device_agents.deployment import Installed, UpdateRecord
from device_agents.diagnostics.checks import checks_of
from device_agents.facts import measure_facts
from device_agents.storage.evidence import EvidenceFile
from device_agents.storage.journal import Journal
from edgekit.bundle.evidence import Evidence
from edgekit.errors import UnavailableError
from edgekit.settings import AgentSettings
from edgekit.storage.disk import FolderDisk
from edgekit.versions import runtime_version
from tests.simulators.bundles import manifest_of, write_bundle

PACKAGE, _, VERSION = runtime_version("onnxruntime").partition(" ")


def check(folder, tools, *, policy="warn", outcome=""):
    settings = AgentSettings(device="d", fleet="f", target="x86-64", state=folder / "state", unproven_runtime=policy)
    disk = FolderDisk(settings.state)
    manifest = msgspec.structs.replace(manifest_of("digits", "1.0.0"), tools=tools)
    bundle = write_bundle(folder, "digits", "1.0.0")
    for path in bundle.iterdir():
        disk.write(f"models/digits/a/{path.name}", path.read_bytes())
    disk.write("models/digits/a/manifest.json", manifest.canonical_bytes())
    active = Installed("a", manifest.digest, "1.0.0", 1)
    Journal(disk).save("digits", UpdateRecord(active=active, known_good=active))
    if outcome:
        arch = measure_facts("x86-64").arch
        entry = Evidence(PACKAGE, VERSION, arch, outcome, "onnxruntime 0.9", "a" * 64)
        EvidenceFile(disk).put("digits", manifest.digest, (entry,))
    return checks_of(settings, folder / "agent.toml")["evidence"]()


def test_a_version_that_the_bundle_was_made_with_or_compared_with_is_proven(tmp_path):
    """Each bundle is named with its version."""
    said = f"digits 1.0.0 is proven with {PACKAGE} {VERSION}"
    assert check(tmp_path / "a", {PACKAGE: VERSION}) == said
    assert check(tmp_path / "b", {PACKAGE: "0.9"}, outcome="within-budget") == said


@pytest.mark.parametrize("policy", ["warn", "test"])
def test_a_version_without_evidence_is_said(tmp_path, policy):
    """It does not fail the check where the owner lets it answer."""
    said = check(tmp_path, {PACKAGE: "0.9"}, policy=policy)
    assert "no evidence for digits 1.0.0" in said
    assert "made with onnxruntime 0.9" in said


@pytest.mark.parametrize(("policy", "outcome"), [("refuse", ""), ("warn", "worse"), ("test", "failed")])
def test_what_is_refused_or_wrong_fails_the_check(tmp_path, policy, outcome):
    """With what to type."""
    with pytest.raises(UnavailableError) as error:
        check(tmp_path, {PACKAGE: "0.9"}, policy=policy, outcome=outcome)
    assert "Install onnxruntime 0.9" in error.value.advice
    assert f"edgekit recheck BUNDLE --runtime {PACKAGE}=={VERSION}" in error.value.advice


def test_a_device_without_a_bundle_has_nothing_to_prove(tmp_path):
    """Before its first update."""
    settings = AgentSettings(device="d", fleet="f", target="x86-64", state=tmp_path / "state")
    assert checks_of(settings, tmp_path / "agent.toml")["evidence"]() == "no bundle is installed"
