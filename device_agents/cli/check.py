"""`edgekit-agent check`."""

from __future__ import annotations

from pathlib import Path

import click

from device_agents.cli.options import config_option
from device_agents.remote.overlay import load_agent_settings
from edgekit.cli.common.console import json_option, needs_extra, print_json, print_table
from edgekit.errors import EdgekitError


@click.command()
@config_option
@json_option
def check(config: Path, as_json: bool) -> int:
    """Check everything that the agent needs, and explain what is missing. Exit 1 when a check fails.

    \b
    Example:
      edgekit-agent check --config pi-1/agent.toml
    """
    settings, overlay = load_agent_settings(config, {}, start=False)
    rows = [{"check": "settings", "ok": True, "found": str(config)}]
    with needs_extra("agent"):
        from device_agents.diagnostics.checks import checks_of
    for name, probe in checks_of(settings, config, overlay).items():
        try:
            rows.append({"check": name, "ok": True, "found": probe()})
        except EdgekitError as error:
            rows.append({"check": name, "ok": False, "found": f"{error}. {error.advice}".rstrip(". ")})
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("CHECK", "", "FOUND"), [(row["check"], "ok" if row["ok"] else "FAILED", row["found"]) for row in rows]
        )
    return 0 if all(row["ok"] for row in rows) else 1
