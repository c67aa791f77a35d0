"""`edgekit-agent status`."""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec

from device_agents.cli.options import config_option
from device_agents.deployment import UpdateRecord
from device_agents.storage.journal import Journal
from device_agents.storage.slots import Pointer, Slots
from edgekit.cli.common.console import json_option, note, print_json, print_table
from edgekit.errors import DataError, NotFoundError
from edgekit.settings import AgentSettings, load_settings
from edgekit.storage.disk import FolderDisk


@click.command()
@config_option
@json_option
def status(config: Path, as_json: bool) -> None:
    """Show the stored state of the agent; works while the agent runs, and without a broker.

    \b
    Example:
      edgekit-agent status --config pi-1/agent.toml
    """
    settings = load_settings(AgentSettings, file=config)
    if not settings.state.is_dir():
        raise NotFoundError(
            f"there is no state folder {settings.state}", advice="The agent creates it when it first runs."
        )
    disk = FolderDisk(settings.state)
    journal = Journal(disk)
    models = {name: state for name, state in journal.models().items() if not state.is_gone}
    if as_json:
        print_json(
            {
                "device": settings.device,
                "fleet": settings.fleet,
                **msgspec.to_builtins(journal.record),
                "models": {
                    name: {**msgspec.to_builtins(state), "pointer": _pointer(disk, name)}
                    for name, state in models.items()
                },
            }
        )
        return
    record = journal.record
    note(f"{settings.device} of fleet {settings.fleet}: session {record.session}, assignment {record.assignment}")
    headers = ("MODEL", "VERSION", "SLOT", "DIGEST", "SINCE", "STATE", "LAST DEPLOYMENT")
    print_table(headers, [_row(name, state) for name, state in sorted(models.items())])


def _pointer(disk: FolderDisk, model: str) -> Pointer | None:
    """The pointer on the disk; None when it is damaged. The agent repairs it."""
    try:
        return Slots(disk, model).pointer()
    except DataError:
        return None


def _row(name: str, state: UpdateRecord) -> tuple[str, ...]:
    active, outcome = state.active, state.outcome
    last = f"{outcome.version} {outcome.result}" if outcome else "none"
    if outcome and outcome.error:
        last += f": {outcome.error}: {outcome.message}"
    if state.note:
        last = f"{state.deployment.version if state.deployment else ''} waits: {state.note}"
    if active is None:
        return (name, "none", "", "", "", state.name.value, last)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(active.since))
    return (name, active.version, active.slot, active.digest[:12], since, state.name.value, last)
