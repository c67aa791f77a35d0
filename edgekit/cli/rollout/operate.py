"""`edgekit rollout approve`, `pause`, `resume`, `retry`, `force`, `cancel` and `abort`."""

from __future__ import annotations

import time

import click
import msgspec

from edgekit.cli.common.console import control_settings, dry_run_option, json_option, note, print_json
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import ROLLOUT
from edgekit.rollout.document import document
from edgekit.rollout.machine import step
from edgekit.rollout.values import (
    Aborted,
    Approved,
    Assign,
    Cancelled,
    Forced,
    Paused,
    Resumed,
    Retried,
    Return,
    Revert,
    RolloutEvent,
)


@click.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@click.option("--reason", default=Paused().reason, show_default=True, help="Reason, as `rollout status` shows it.")
@dry_run_option
@json_option
def pause(number: int, reason: str, dry_run: bool, as_json: bool) -> None:
    """Assign the version to no more devices. Devices that have the assignment continue.

    \b
    Example:
      edgekit rollout pause 3 --reason "store visit on Monday"
    """
    _operate(number, Paused(reason), dry_run, as_json)


@click.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@dry_run_option
@json_option
def resume(number: int, dry_run: bool, as_json: bool) -> None:
    """Continue a paused rollout. Failures up to now no longer count towards the thresholds.

    \b
    Example:
      edgekit rollout resume 3
    """
    _operate(number, Resumed(), dry_run, as_json)


@click.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@click.option("--reason", default=Aborted().reason, show_default=True, help="Reason, as `rollout status` shows it.")
@dry_run_option
@json_option
def abort(number: int, reason: str, dry_run: bool, as_json: bool) -> None:
    """End a rollout. Devices that have not succeeded get their previous assignment back.

    \b
    Example:
      edgekit rollout abort 3 --dry-run
    """
    _operate(number, Aborted(reason), dry_run, as_json)


@click.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@dry_run_option
@json_option
def approve(number: int, dry_run: bool, as_json: bool) -> None:
    """Let the wave start that waits for an approval.

    \b
    Example:
      edgekit rollout approve 3
    """
    _operate(number, Approved(), dry_run, as_json)


@click.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@dry_run_option
@json_option
def retry(number: int, dry_run: bool, as_json: bool) -> None:
    """Try again on the devices that failed or were not reached; a paused rollout goes on.

    \b
    Example:
      edgekit rollout retry 3
    """
    _operate(number, Retried(), dry_run, as_json)


@click.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@dry_run_option
@json_option
def force(number: int, dry_run: bool, as_json: bool) -> None:
    """Let no device wait until its user agrees, also where the user declined.

    Quiet hours, metered links and maintenance windows hold as before. Devices that were not reached get another
    attempt.

    \b
    Example:
      edgekit rollout force 3 --dry-run
    """
    _operate(number, Forced(), dry_run, as_json)


@click.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@click.argument("device")
@dry_run_option
@json_option
def cancel(number: int, device: str, dry_run: bool, as_json: bool) -> None:
    """Take one device out of a rollout; it gets its previous assignment back.

    \b
    Example:
      edgekit rollout cancel 3 pi-4
    """
    _operate(number, Cancelled(device), dry_run, as_json)


def _operate(number: int, event: RolloutEvent, dry_run: bool, as_json: bool) -> None:
    with fleet_state(control_settings()) as state:
        if not dry_run:
            rollout = state.rollouts.apply(number, event, time.time())
            if as_json:
                print_json(document(rollout))
            else:
                note(f"rollout {number} of {rollout.model} {rollout.version} is {rollout.state.value}")
            return
        planned = step(state.rollouts.get(number), event, time.time())
    rollout = planned.state
    assign = [effect.device for effect in planned.effects if isinstance(effect, Assign)]
    revert = [effect.device for effect in planned.effects if isinstance(effect, Revert | Return)]
    if as_json:
        print_json({**msgspec.to_builtins(document(rollout)), "tell": assign, "withdraw": revert})
        return
    note(f"rollout {number} of {rollout.model} {rollout.version} would be {rollout.state.value}")
    note(f"would assign: {', '.join(assign) or 'no device'}; would revert: {', '.join(revert) or 'no device'}")
