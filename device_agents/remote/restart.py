"""Starts the agent's process again, as the commands `restart` and `set` ask."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def restart_process(environment: Mapping[str, str], *, managed: bool) -> None:
    """Replace this process by a new run of the same command line; does not return.

    Args:
        environment: The environment at the start of this process.
        managed: True under systemd: the process ends instead, and the unit's ``Restart=always`` starts another one,
            because the manager takes a process that said STOPPING for one that ends.
    """
    sys.stdout.flush()
    if managed:
        sys.exit(0)
    os.execve(sys.executable, sys.orig_argv, dict(environment))  # noqa: S606
