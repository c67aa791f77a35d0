"""The files in deploy/ say what the code says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.broker import mosquitto_acl
from edgekit.settings import AgentSettings

DEPLOY = Path(__file__).parent.parent / "deploy"


def test_the_broker_rules_of_a_fleet_are_those_of_the_private_broker() -> None:
    """One rule in two places must be one text: regenerate deploy/edgekit.acl from `mosquitto_acl()`."""
    assert (DEPLOY / "edgekit.acl").read_text() == mosquitto_acl()


def test_the_unit_sets_only_settings_that_exist() -> None:
    """Every EDGEKIT_ variable of the systemd unit is a field of the agent's settings."""
    names = re.findall(r"EDGEKIT_([A-Z_]+)=", (DEPLOY / "edgekit-agent.service").read_text())
    assert names
    assert {name.lower() for name in names} <= set(AgentSettings.__struct_fields__)


def test_mosquitto_knows_every_option_of_the_fleet_broker(tmp_path: Path) -> None:
    """The example configuration is read without complaint; it ends there for want of certificates."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("mosquitto is not installed")
    text = (DEPLOY / "mosquitto.conf").read_text().replace("/var/lib/mosquitto/", f"{tmp_path}/")
    (tmp_path / "acl").write_text(mosquitto_acl())
    text = text.replace("/etc/mosquitto/edgekit.acl", str(tmp_path / "acl")).replace(
        "listener 8883", "listener 18883 127.0.0.1"
    )
    (tmp_path / "mosquitto.conf").write_text(text)
    done = subprocess.run([program, "-c", str(tmp_path / "mosquitto.conf")], capture_output=True, text=True, timeout=20)
    assert "Config loaded" in done.stderr, done.stderr
    assert done.returncode != 0  # nothing here may listen
