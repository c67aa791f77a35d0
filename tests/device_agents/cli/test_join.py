"""`edgekit-agent join`: what it refuses before it connects; with a broker, tests/edgekit/identity/test_fleet_ca.py."""

import click
import pytest
from click.testing import CliRunner

from device_agents.cli.join import join
from edgekit.errors import SettingsError
from edgekit.identity.join import make_code
from edgekit.trust.keys import generate_key

CODE = make_code("north", bytes(range(25)))[0]
SETTINGS = 'device = "d1"\nfleet = "north"\ntarget = "x86-64"\nbroker = "mqtts://127.0.0.1:9"\n'
TLS = 'broker_certificate = "broker.pem"\nbroker_key = "broker.key"\n'


def refused(*words):
    """The error of the command."""
    done = CliRunner().invoke(join, ["mqtt://127.0.0.1:9", "--code", CODE, *words], standalone_mode=False)
    assert done.exception is not None
    return done.exception


@pytest.mark.parametrize(
    "words", [(), ("--id", "d1"), ("--target", "x86-64"), ("--again", "--id", "d1"), ("--again", "--no-samples")]
)
def test_a_new_device_is_named_and_an_enrolled_one_is_not(words):
    """Name and target are needed once, and stand in agent.toml afterwards."""
    assert isinstance(refused(*words), click.UsageError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SETTINGS, "names no broker_certificate"),
        (SETTINGS + 'broker_certificate = "broker.pem"\n', "names no broker_certificate with a broker_key"),
        (SETTINGS.replace("north", "south") + TLS, "the code is of fleet 'north', the device of 'south'"),
        ("", "missing required"),
    ],
)
def test_a_folder_that_can_get_no_new_certificate_is_named(tmp_path, text, said):
    """Nothing is sent, and nothing in the folder changes."""
    generate_key(tmp_path / "device.key")
    (tmp_path / "agent.toml").write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    error = refused("--again", "-o", str(tmp_path))
    assert isinstance(error, SettingsError)
    assert said in str(error)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
