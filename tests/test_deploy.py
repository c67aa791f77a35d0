"""The files in deploy/ agree with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from device_agents.__main__ import agent
from edgekit.cli.main import edgekit
from edgekit.mqtt.broker_files import BrokerFiles, claim_acl, mosquitto_acl, mosquitto_fleet_config
from edgekit.settings import AgentSettings, ControlSettings, load_settings
from tests.docs.test_code_blocks import check_call

DEPLOY = Path(__file__).parent.parent / "deploy"
USUAL = BrokerFiles(claim_port=8884, revocations=True)


def test_the_files_of_the_fleet_broker_are_those_of_the_command() -> None:
    """deploy/ has what `edgekit broker config --claim-port 8884` writes; write it again after a change there."""
    assert (DEPLOY / "edgekit.acl").read_text() == mosquitto_acl()
    assert (DEPLOY / "edgekit-claim.acl").read_text() == claim_acl()
    assert (DEPLOY / "mosquitto.conf").read_text() == mosquitto_fleet_config(USUAL)


def test_the_unit_sets_only_settings_that_exist() -> None:
    """Every EDGEKIT_ variable of the systemd unit is a field of the agent's settings."""
    names = re.findall(r"EDGEKIT_([A-Z_]+)=", (DEPLOY / "edgekit-agent.service").read_text())
    assert names
    assert {name.lower() for name in names} <= set(AgentSettings.__struct_fields__)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A copy of the unit whose program exists on this machine."""
    text = (DEPLOY / "edgekit-agent.service").read_text()
    copy = tmp_path / "edgekit-agent.service"
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text))
    return copy


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("gpu", [False, True])
def test_systemd_knows_every_line_of_the_unit(unit: Path, gpu: bool) -> None:
    """`systemd-analyze verify` reports nothing about the unit, with and without the drop-in for GPUs."""
    if gpu:
        (unit.parent / f"{unit.name}.d").mkdir()
        shutil.copy(DEPLOY / "edgekit-agent-gpu.conf", unit.parent / f"{unit.name}.d" / "gpu.conf")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0
    assert unit.name not in done.stderr, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_approves_of_the_units_confinement(unit: Path) -> None:
    """The exposure is at most 2.0 of 10, which systemd calls OK; a service without confinement has 9.6."""
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd is older than 250")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK" in done.stdout.splitlines()[-1]


def test_mosquitto_knows_every_option_of_the_fleet_broker(tmp_path: Path) -> None:
    """mosquitto reads the example configuration without an error, then ends because the certificates are missing."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("mosquitto is not installed")
    text = (DEPLOY / "mosquitto.conf").read_text().replace("/var/lib/mosquitto/", f"{tmp_path}/")
    (tmp_path / "acl").write_text(mosquitto_acl())
    for port in ("8883", "8884"):
        text = text.replace(f"listener {port}", f"listener 1{port} 127.0.0.1")
    for name in ("edgekit.acl", "edgekit-claim.acl"):
        text = text.replace(f"/etc/mosquitto/{name}", str(tmp_path / "acl"))
    (tmp_path / "mosquitto.conf").write_text(text)
    command = [program, "-c", str(tmp_path / "mosquitto.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Config loaded" in done.stderr, done.stderr
    assert done.returncode != 0  # it must not listen


def indented(text: str, key: str) -> str:
    """The lines under ``key: |`` of a YAML file, without their indentation."""
    after = text.partition(f"{key}: |\n")[2]
    first = re.match(r" +", after)
    assert first, key
    lines = after.splitlines()
    ends = next((n for n, line in enumerate(lines) if line and not line.startswith(first.group())), len(lines))
    return "\n".join(line[first.end() :] for line in lines[:ends])


def test_the_cloud_tier_of_kubernetes_has_settings_and_a_command_that_exist(tmp_path: Path) -> None:
    """Its ports are those of the containers and of the probes."""
    text = (DEPLOY / "kubernetes" / "cloud.yaml").read_text()
    file = tmp_path / "edgekit.toml"
    file.write_text(indented(text, "edgekit.toml"))
    settings = load_settings(ControlSettings, file=file, environ={})
    ports = (settings.cloud_port, settings.cloud_grpc_port, settings.cloud_health_port)
    assert tuple(map(int, re.findall(r"containerPort: (\d+)", text))) == ports
    assert "terminationGracePeriodSeconds: 45" in text
    assert settings.cloud_drain_seconds + 5 < 45
    for name in ("cloud.yaml", "inferenceservice.yaml"):
        listed = re.search(r"args:\n((?: +- .*\n)+)", (DEPLOY / "kubernetes" / name).read_text())
        assert listed
        words = [line.strip(" -") for line in listed.group(1).replace("- --", "- @@").splitlines()]
        check_call(edgekit, "edgekit", [word.replace("@@", "--") for word in words])


@pytest.mark.parametrize("role", ["agent", "controller", "cloud"])
def test_an_image_has_a_command_that_exists_and_pinned_packages(role: str) -> None:
    """Its packages are those of constraints/all.txt, in the same versions; make constraints writes both."""
    conf = dict(re.findall(r'(?m)^(\w+)="(.*)"$', (DEPLOY / "containers" / f"{role}.conf").read_text()))
    program = agent if conf["ENTRYPOINT"] == "python3 -m device_agents" else edgekit
    check_call(program, str(program.name), conf["COMMAND"].split())
    constraints = DEPLOY.parent / "constraints"
    pins, every = (
        set(re.findall(r"(?m)^([\w.-]+==\S+)", (constraints / f"{name}.txt").read_text())) for name in (role, "all")
    )
    assert len(pins) > 20
    assert pins <= every
