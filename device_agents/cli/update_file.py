"""`edgekit-agent import`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from device_agents.cli.options import config_option
from device_agents.remote.overlay import load_agent_settings
from edgekit.cli.common.console import json_option, needs_extra, print_json, print_table
from edgekit.errors import RefusedError


@click.command(name="import")
@click.argument("path", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@config_option
@json_option
def import_command(path: Path, config: Path, as_json: bool) -> int:
    """Install what an update file has for this device, without a network; exit 3 if it is refused.

    `edgekit registry export` writes the file. It is verified as if it came over the network, and the outcome is
    reported when there is a broker. Of a folder, the file with this device's newest assignment is taken. Stop the agent
    first: this command answers local applications meanwhile.

    \b
    Example:
      edgekit-agent import /media/stick/pi-1.edgekit --config pi-1/agent.toml
    """
    settings, _ = load_agent_settings(config, {}, start=False)
    with needs_extra("agent"):
        from device_agents.offline.running import import_file
    rows = asyncio.run(import_file(settings, path))
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("MODEL", "VERSION", "RESULT", ""),
            [(row.model, row.version, row.result, f"{row.error} {row.message}".strip()) for row in rows],
        )
    if any(row.result == "refused" for row in rows):
        return RefusedError.exit_code
    return 0 if all(row.result in ("succeeded", "current", "uninstalled") for row in rows) else 1
