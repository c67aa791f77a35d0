"""Commands for sealed bundles: device classes, publishing, enrolling, and the cloud tier."""

import json
import stat
import subprocess
import sys

import pytest
from click.testing import CliRunner

from device_agents.assembly.control import make_agent
from device_agents.assembly.serving import make_inference
from device_agents.diagnostics.checks import checks_of
from device_agents.facts import measure_facts
from edgekit.cli.main import edgekit
from edgekit.errors import EdgekitError, ManifestError, NotFoundError, SettingsError
from edgekit.registry import RegistryReader
from edgekit.sealing.opening import keyring_paths, use_keyring
from edgekit.settings import AgentSettings, ControlSettings, load_settings
from edgekit.storage.stores import open_store
from tests.simulators.small_models import onnx_bundle

TARGET = "raspberry-pi-4"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a registry, two classes, and two plain bundles of some size."""
    for name in ("EDGEKIT_PASSPHRASE", "EDGEKIT_REGISTRY", "EDGEKIT_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    ran("registry", "init")
    for name in ("cameras", "doors"):
        ran("registry", "class", "add", name)
    for version in ("1.0.0", "1.1.0"):
        onnx_bundle(tmp_path / version, name="digits", version=version, target=TARGET)
    yield tmp_path
    use_keyring(None)


def typed(*words, **env):
    return CliRunner().invoke(edgekit, list(words), env=env)


def ran(*words, **env):
    result = typed(*words, **env)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def failed(kind: type[EdgekitError], *words) -> EdgekitError:
    result = typed(*words)
    assert isinstance(result.exception, kind), (result.output, result.exception)
    return result.exception


def blobs(folder):
    return {path: path.read_bytes() for path in (folder / "registry" / "blobs").rglob("*") if path.is_file()}


def test_a_bundle_is_published_for_classes(folder):
    """Plan, publish, publish again and show; the store holds no file unencrypted."""
    model = (folder / "1.0.0" / "model.onnx").read_bytes()
    words = ("registry", "publish", "1.0.0", "--encrypt-for", "cameras", "--encrypt-for", "doors")
    (plan,) = json.loads(ran(*words, "--dry-run", "--json"))
    assert (plan["published"], plan["upload_files"]) == (False, 2)
    (first,) = json.loads(ran(*words, "--json"))
    before = blobs(folder)
    assert not any(model[:32] in data for data in before.values())
    assert json.loads(ran(*words, "--json")) == [first]
    assert json.loads(ran(*words, "--dry-run", "--json"))[0]["upload_files"] == 0
    assert blobs(folder) == before
    assert "sealed   for cameras, doors" in ran("registry", "show", "digits", "1.0.0")
    assert json.loads(ran("registry", "verify", "--json"))["sound"]
    assert (folder / "1.0.0" / "model.onnx").read_bytes() == model
    failed(ManifestError, "registry", "publish", "1.0.0")  # the same version with other content
    failed(ManifestError, "registry", "publish", "1.0.0", "--encrypt-for", "doors")


def test_a_plan_makes_no_secret(folder):
    """A publisher that has only the public key of a class gets its secret with the first publish."""
    for name in ("cameras.key", "doors.key", "_content.key", "_content.pub"):
        (folder / "keys" / "classes" / name).unlink()
    words = ("registry", "publish", "1.0.0", "--encrypt-for", "cameras")
    ran(*words, "--dry-run")
    assert not (folder / "keys" / "classes" / "_content.key").exists()
    ran(*words)
    assert (folder / "keys" / "classes" / "_content.key").exists()
    rows = json.loads(ran("registry", "class", "list", "--json"))
    assert [(row["name"], row["private_here"]) for row in rows] == [("cameras", False), ("doors", False)]
    assert "elsewhere" in ran("registry", "class", "list")


def test_no_delta_is_made_of_what_has_nothing_in_common(folder):
    """No delta is made of an encrypted bundle, even if it is requested, and the output says so."""
    ran("registry", "publish", "1.0.0", "--encrypt-for", "cameras")
    said = typed("registry", "publish", "1.1.0", "--encrypt-for", "cameras", "--delta-from", "1.0.0")
    assert said.exit_code == 0
    assert "no deltas" in said.stderr


def test_a_device_is_enrolled_into_a_class(folder):
    """Only the device can read its class key; check lists the class, and the agent's facts hold the key id."""
    ran("device", "enroll", "pi-1", "--target", TARGET, "-o", "d", "--class", "cameras")
    settings = load_settings(AgentSettings, file=folder / "d" / "agent.toml", environ={})
    (path,) = settings.class_keys
    assert path == folder / "d" / "class-cameras.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = json.loads(ran("registry", "class", "list", "--json"))
    key = next(row["key_id"] for row in rows if row["name"] == "cameras")
    assert checks_of(settings, folder / "d" / "agent.toml")["class keys"]() == f"key id {key[:12]}"
    inference, _ = make_inference(settings)
    assert keyring_paths() == (path,)
    made = make_agent(settings, inference, measure_facts(TARGET))
    ran("registry", "publish", "1.0.0", "--encrypt-for", "doors")
    store = open_store(f"file://{folder / 'registry'}")
    reader = RegistryReader(store, (folder / "keys" / "root.json").read_bytes(), folder / "cache")
    reader.refresh()
    said = made._effects._checks.mismatches(reader.resolve("digits", TARGET).manifest)
    assert f"this device has key {key[:12]}" in " ".join(said)


def test_a_class_key_under_a_passphrase_is_plain_on_the_device_only(folder):
    """The key is stored unencrypted on the device, because an agent starts without a person to type a passphrase."""
    ran("registry", "class", "add", "gates", EDGEKIT_PASSPHRASE="secret")
    assert b"ENCRYPTED" in (folder / "keys" / "classes" / "gates.key").read_bytes()
    failed(SettingsError, "device", "enroll", "pi-1", "--target", TARGET, "-o", "d", "--class", "gates")
    assert not (folder / "d").exists()
    ran("device", "enroll", "pi-1", "--target", TARGET, "-o", "d", "--class", "gates", EDGEKIT_PASSPHRASE="secret")
    assert b"ENCRYPTED" not in (folder / "d" / "class-gates.key").read_bytes()


def test_classes_that_are_not_there_are_named(folder):
    """The error names the class and the command that makes it; nothing is published or written."""
    assert "class add gates" in failed(NotFoundError, "registry", "publish", "1.0.0", "--encrypt-for", "gates").advice
    failed(NotFoundError, "device", "enroll", "pi-1", "--target", TARGET, "-o", "d", "--class", "gates")
    failed(SettingsError, "device", "enroll", "pi-1", "--target", TARGET, "-o", "d", "--class", "../cameras")
    failed(SettingsError, "registry", "class", "add", "cameras")
    assert not blobs(folder)
    assert not (folder / "d").exists()


def test_the_cloud_tier_needs_the_class_key(folder):
    """Without the key the bundle is refused before it is fetched; with the key it is served."""
    onnx_bundle(folder / "cloud", name="big", target="server", batch=None)
    ran("registry", "publish", "cloud", "--encrypt-for", "cameras")
    serve = [sys.executable, "-c", "from edgekit.cli.main import main; main()", "cloud", "serve", "big", "--port", "0"]
    refused = subprocess.run(serve, capture_output=True, text=True, timeout=240)
    assert refused.returncode == 3
    assert "big 1.0.0 is sealed for cameras, and no such class key was given" in refused.stderr
    assert "--class-key" in refused.stderr
    (folder / "edgekit.toml").write_text('cloud_class_keys = ["keys/classes/doors.key"]\n')
    settings = load_settings(ControlSettings, file=folder / "edgekit.toml", environ={})
    assert settings.cloud_class_keys == (folder / "keys/classes/doors.key",)
    with subprocess.Popen(
        [*serve, "--class-key", "keys/classes/cameras.key"], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert "(big 1.0.0)" in child.stdout.readline()
        finally:
            child.terminate()
