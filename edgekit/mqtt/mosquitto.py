"""Finding the installed mosquitto program."""

from __future__ import annotations

import os
import shutil

SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # often not on a user's PATH


def find_mosquitto() -> str | None:
    """Path of the mosquitto program, or None where it is not installed."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS]))
