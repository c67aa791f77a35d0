"""The stored answers of the user."""

import pytest
from click.testing import CliRunner

from device_agents.__main__ import agent
from device_agents.deployment import Deployment, UpdateRecord
from device_agents.storage.consents import FILE_NAME, Consents
from device_agents.storage.journal import Journal
from edgekit.storage.disk import FolderDisk

DIGEST = "a" * 64


@pytest.fixture
def disk(tmp_path):
    return FolderDisk(tmp_path / "state")


def test_an_answer_is_for_one_bundle(disk):
    """Another bundle has no answer, and a damaged file has none at all."""
    consents = Consents(disk)
    assert consents.get("m", DIGEST) is None
    consents.put("m", DIGEST, False)
    consents.put("n", DIGEST, True)
    assert (consents.get("m", DIGEST), consents.get("n", DIGEST), consents.get("m", "b" * 64)) == (False, True, None)
    disk.write(FILE_NAME, b"{")
    assert consents.get("m", DIGEST) is None


def test_the_command_answers_only_what_is_asked(tmp_path, disk):
    """An update that asks for an agreement gets one; any other model is named in the error."""
    config = tmp_path / "agent.toml"
    config.write_text(f'device = "d"\nfleet = "f"\ntarget = "x86-64"\nstate = "{tmp_path / "state"}"\n')
    deployment = Deployment(DIGEST, 1, "p", "m", "1.1.0", "x86-64", 1, 1, consent=True)
    Journal(disk).save("m", UpdateRecord(deployment=deployment))
    run = CliRunner().invoke
    found = run(agent, ["agree", "m", "--config", str(config), "--json"])
    assert found.exit_code == 0, found.output
    assert Consents(disk).get("m", DIGEST) is True
    run(agent, ["agree", "m", "--no", "--config", str(config)])
    assert Consents(disk).get("m", DIGEST) is False
    refused = run(agent, ["agree", "n", "--config", str(config)])
    assert "no update of model 'n' asks for an agreement" in str(refused.exception)
