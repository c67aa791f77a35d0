"""Settings files and key files of earlier releases are read."""

import json

import msgspec
import pytest

from edgekit.cli.cloud import read_api_key
from edgekit.errors import SettingsError
from edgekit.sealing.class_keys import find_class, load_class_key
from edgekit.sealing.keyring import Keyring
from edgekit.settings import AgentSettings, ControlSettings, load_settings
from edgekit.settings.load import tomllib
from edgekit.trust.keys import load_public, load_signer, private_keys, public_path
from tests.simulators.releases import without_new_keys


def plain(settings, folder):
    """Settings as JSON values, with ``{folder}`` in place of their folder."""
    text = msgspec.json.encode(settings, enc_hook=str).decode()
    return json.loads(text.replace(str(folder.resolve()), "{folder}").replace(str(folder), "{folder}"))


@pytest.mark.parametrize(("name", "kind"), [("agent.toml", AgentSettings), ("edgekit.toml", ControlSettings)])
def test_every_key_is_read_as_it_was(release, name, kind):
    """Each key has the value that the release read from the same file."""
    folder = release.folder / "settings"
    expected = json.loads((folder / "expected.json").read_text())[name]
    assert set(expected) >= set(tomllib.loads((folder / name).read_text()))
    loaded = plain(load_settings(kind, file=folder / name, environ={}), folder)
    assert without_new_keys(loaded, expected) == expected


def test_files_of_an_enrolled_device_are_read(release, tmp_path):
    """The device's key pair and class key match, and its API key is read."""
    folder = release.device(tmp_path, "committed")
    settings = load_settings(AgentSettings, file=folder / "agent.toml", environ={})
    assert load_signer(settings.key).public_key == load_public(public_path(settings.key))
    gates = find_class(release.keys(tmp_path, "control") / "keys", "gates")
    assert Keyring(settings.class_keys).ids == (gates.key_id,)
    assert read_api_key(settings.cloud_api_key_file) == settings.cloud_api_key_file.read_text().strip()


def test_settings_and_api_key_of_the_control_side_are_read(release, tmp_path):
    """Paths in edgekit.toml are relative to its folder."""
    folder = release.control(tmp_path)
    settings = load_settings(ControlSettings, file=folder / "edgekit.toml", environ={})
    assert settings.fleet == "assets"
    assert len(read_api_key(settings.cloud_api_key_file)) >= 16


def test_every_signing_key_is_read(release, tmp_path):
    """Each private key matches the public key beside it."""
    keys = release.control(tmp_path) / "keys"
    paths = private_keys(keys)
    assert {"root.key", "director.key", "timestamp.key", "timestamp+2.key"} <= {path.name for path in paths}
    for path in paths:
        assert load_signer(path).public_key == load_public(public_path(path))


def test_class_key_under_a_passphrase_is_opened(release, tmp_path):
    """Only the right passphrase opens the class key."""
    keys = release.keys(tmp_path, "locked")
    path = keys / "classes" / "vault.key"
    phrase = (keys / "passphrase.txt").read_text().strip()
    public = load_class_key(path, phrase).public_key().public_bytes_raw()
    assert public == find_class(keys, "vault").public
    with pytest.raises(SettingsError):
        load_class_key(path, "another")
