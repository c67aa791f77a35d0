"""Names of the files in a device's folder, and the text of its agent.toml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

KEY_FILE, ROOT_FILE, SETTINGS_FILE, CLOUD_KEY_FILE = "device.key", "root.json", "agent.toml", "cloud.key"
SAMPLE_KEY_FILE = "samples.pub"
TLS_FILES = {"broker_ca": "broker-ca.pem", "broker_certificate": "broker.pem", "broker_key": "broker.key"}


def settings_toml(values: Mapping[str, Any]) -> str:
    """TOML of flat values; strings and numbers are written as JSON, which is valid TOML. None is left out."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"
