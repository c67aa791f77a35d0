"""The agent as a process, with a broker that requires a certificate from every client, and the rules of deploy/."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import SettingsError
from edgekit.mqtt.broker import find_mosquitto
from edgekit.registry import publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.values import RolloutState
from edgekit.settings import AgentSettings, ControlSettings, load_settings, tls_files
from edgekit.trust.keys import generate_key
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.pki import Pki
from tests.simulators.small_models import onnx_bundle

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
RULES = Path(__file__).parents[2] / "deploy" / "edgekit.acl"


@contextlib.contextmanager
def tls_broker(folder):
    """mosquitto as deploy/mosquitto.conf has it, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "edgekit.acl").write_bytes(RULES.read_bytes())
    (folder / "edgekit.acl").chmod(0o600)
    config = folder / "tls.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/broker.pem\n"
        f"keyfile {folder}/broker.key\nrequire_certificate true\nuse_identity_as_username true\n"
        f"allow_anonymous false\nacl_file {folder}/edgekit.acl\n" + ("user root\n" if os.geteuid() == 0 else "")
    )
    process = subprocess.Popen([find_mosquitto(), "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"mqtts://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def enroll(side, folder, **changes):
    """A folder for pi-1, with `changes` of its settings."""
    made = side.folder / "pi-1"
    made.mkdir()
    generate_key(made / "device.key")
    (made / "root.json").write_bytes(side.root)
    settings = {
        "device": "pi-1",
        "fleet": FLEET,
        "target": "x86-64",
        "broker": side.url,
        "broker_ca": str(folder / "ca.pem"),
        "broker_certificate": str(folder / "pi-1.pem"),
        "broker_key": str(folder / "pi-1.key"),
        "http": "127.0.0.1:0",
        **changes,
    }
    (made / "agent.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in settings.items()))
    with (made / "agent.toml").open("a") as file:
        file.write("probation_seconds = 0.1\n")
    side.state.devices.enroll(Device("pi-1", "x86-64", (made / "device.pub").read_text(), enrolled=side.clock.wall()))
    return AgentProcess(made)


@needs_mosquitto
async def test_a_model_reaches_an_agent_over_mutual_tls(tmp_path):
    """Enrolled, rolled out, tested and reported, with certificates alone as identity."""
    pki = Pki(tmp_path, ["broker", "controller", "pi-1"])
    with tls_broker(tmp_path) as url:
        side = ControlSide(tmp_path, url)
        side.tls = {"ca": pki.ca, "certificate": tmp_path / "controller.pem", "key": tmp_path / "controller.key"}
        async with side:
            onnx_bundle(tmp_path / "made", version="1.0.0")
            publish(side.store, side.repository, tmp_path / "made")
            agent = enroll(side, tmp_path)
            await agent.start()
            try:
                side.start("small", "1.0.0", "x86-64")
                await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
                assert await agent.ask("small") == "1.0.0"
            finally:
                await agent.end()


@needs_mosquitto
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"broker_ca": "{other}/ca.pem"}, "certificate is not trusted"),
        ({"broker_ca": "{folder}/none.pem"}, "TLS files"),
        ({"broker_key": "{folder}/broker.key"}, "TLS files"),
    ],
    ids=["another-authority", "no-such-file", "another-key"],
)
def test_check_says_what_is_wrong_with_the_certificates(tmp_path, changes, said):
    """Exit 1, and the row of the broker names it; nothing goes on without TLS."""
    Pki(tmp_path, ["broker", "pi-1"])
    (tmp_path / "other").mkdir()
    Pki(tmp_path / "other", [])
    changes = {key: value.format(folder=tmp_path, other=tmp_path / "other") for key, value in changes.items()}
    with tls_broker(tmp_path) as url:
        side = ControlSide(tmp_path, url)
        agent = enroll(side, tmp_path, **changes)
        side.state.close()
        command = [sys.executable, "-m", "device_agents", "check", "--config", str(agent.folder / "agent.toml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("broker")]
    assert "FAILED" in row
    assert said in row


@pytest.mark.parametrize("kind", [AgentSettings, ControlSettings])
def test_certificates_that_nothing_would_check_are_refused(kind):
    """Without mqtts:// they would give a false sense of safety."""
    flags = {"broker_ca": Path("ca.pem"), "broker": "mqtt://host"}
    if kind is AgentSettings:
        flags |= {"device": "d", "fleet": "f", "target": "t"}
    with pytest.raises(SettingsError, match="mqtts"):
        tls_files(load_settings(kind, file=None, environ={}, flags=flags))
    flags |= {"broker": "mqtts://host", "broker_ca": None, "broker_key": Path("k")}
    with pytest.raises(SettingsError, match="broker_certificate is not"):
        tls_files(load_settings(kind, file=None, environ={}, flags=flags))
