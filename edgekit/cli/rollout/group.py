"""`edgekit rollout`: roll a version out to the fleet in waves; its commands are in the modules beside this one."""

from __future__ import annotations

import click

from edgekit.cli.rollout.operate import abort, approve, cancel, force, pause, resume, retry
from edgekit.cli.rollout.show import list_command, status, watch
from edgekit.cli.rollout.start import start


@click.group()
def rollout() -> None:
    """Roll a version out in waves; watch, approve, pause, resume, retry, force, cancel, abort.

    \b
    Examples:
      edgekit rollout start digits 1.0.0 --wait
      edgekit rollout watch
    """


for _command in (start, status, list_command, watch, approve, pause, resume, retry, force, cancel, abort):
    rollout.add_command(_command)
