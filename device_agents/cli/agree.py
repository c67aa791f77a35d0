"""`edgekit-agent agree`."""

from __future__ import annotations

from pathlib import Path

import click

from device_agents.cli.options import config_option
from device_agents.storage.consents import Consents, asks_consent
from device_agents.storage.journal import Journal
from edgekit.cli.common.console import json_option, note, print_json
from edgekit.settings import AgentSettings, load_settings
from edgekit.storage.disk import FolderDisk


@click.command()
@click.argument("model")
@click.option("--no", "declines", is_flag=True, help="Decline; another answer can be given later.")
@config_option
@json_option
def agree(model: str, declines: bool, config: Path, as_json: bool) -> None:
    """Agree to the update of MODEL that waits for it, or decline it; a running agent notices within seconds.

    \b
    Examples:
      edgekit-agent agree digits --config pi-1/agent.toml
      edgekit-agent agree digits --no
    """
    disk = FolderDisk(load_settings(AgentSettings, file=config).state)
    deployment = asks_consent(model, Journal(disk).models().get(model))
    Consents(disk).put(model, deployment.digest, not declines)
    if as_json:
        print_json({"model": model, "version": deployment.version, "agree": not declines})
    else:
        note(f"{model} {deployment.version}: {'declined' if declines else 'agreed'}")
