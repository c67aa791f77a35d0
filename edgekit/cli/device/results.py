"""Answers of devices to commands: waiting for them, tables, and `edgekit device results`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, printable
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Whole
from edgekit.cli.rollout.text import time_text
from edgekit.errors import EdgekitError, UnavailableError
from edgekit.mqtt.command_arguments import COMMAND_KINDS, LOGS

if TYPE_CHECKING:
    from edgekit.state import FleetState, StoredCommand

POLL_SECONDS = 0.2
_ENDED = ("done", "expired")


@click.command()
@click.argument("name", metavar="[ID]", required=False)
@click.option("--kind", type=click.Choice(COMMAND_KINDS), help="Only commands of this kind.")
@click.option("--number", type=Whole(1, 2**53), help="Only this command of the device ID; prints all of its answer.")
@click.option("--limit", type=Whole(1, 10_000), default=50, show_default=True, help="Number of commands.")
@json_option
def results(name: str | None, kind: str | None, number: int | None, limit: int, as_json: bool) -> None:
    """Show the newest commands, of all devices or of the device ID, and their results.

    \b
    Examples:
      edgekit device results --kind profile
      edgekit device results pi-1 --json
    """
    if number is not None and not name:
        raise click.UsageError("--number counts the commands of one device: name it.")
    settings = control_settings()
    with fleet_state(settings) as state:
        if name:
            state.devices.get(name)
        found = state.commands.latest(name, kind=kind, number=number, limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        note("No command was sent.")
    elif number is not None:
        _print_whole(found[0])
    else:
        rows = [
            (one.device, str(one.number), one.kind, time_text(one.created), result_text(one), printable(one.message))
            for one in found
        ]
        print_table(("device", "number", "command", "sent", "result", "message"), rows)


def result_text(command: StoredCommand) -> str:
    """The state of a command in a word: ``waits``, ``sent``, ``passed``, ``failed`` or ``no answer``."""
    if command.state == "done":
        return "passed" if command.ok else "failed"
    return {"asked": "waits", "expired": "no answer"}.get(command.state, command.state)


def await_answers(state: FleetState, sent: list[StoredCommand]) -> list[StoredCommand]:
    """The commands with their answers, or as they are when they have expired."""
    return [_await_answer(state, one) for one in sent]


def _await_answer(state: FleetState, sent: StoredCommand) -> StoredCommand:
    while True:
        found = state.commands.get(sent.device, sent.number)
        if found.state in _ENDED or time.time() > sent.expires + 1:
            return found
        time.sleep(POLL_SECONDS)


def report_answers(answers: list[StoredCommand], expires: float, *, as_json: bool, alone: bool) -> None:
    """Print the answers.

    Args:
        answers: The commands.
        expires: Seconds in which they could begin.
        as_json: They are printed already.
        alone: The command was for one device.

    Raises:
        UnavailableError, EdgekitError: for the first one that is missing or failed.
    """
    if not as_json and not alone:
        print_table(
            ("device", "number", "result", "message"),
            [(one.device, str(one.number), result_text(one), printable(one.message)) for one in answers],
        )
    elif not as_json and answers[0].ok:
        _print_whole(answers[0])
    silent = [answer for answer in answers if answer.state != "done"]
    if silent:
        names = ", ".join(answer.device for answer in silent[:10]) + (" and others" if len(silent) > 10 else "")
        why = f": {printable(silent[0].message)}" if len(silent) == 1 and silent[0].message else ""
        raise UnavailableError(
            f"{names} did not answer {answers[0].kind} within {expires:g} s{why}",
            advice="Check with `edgekit device list` that it is online, and that `edgekit controller run` is running.",
        )
    for answer in answers:
        if not answer.ok:
            raise EdgekitError(f"{answer.device}: {answer.kind} failed: {answer.message}")


def _print_whole(command: StoredCommand) -> None:
    click.echo(f"{command.device}: {command.kind} {result_text(command)}: {printable(command.message)}")
    if command.kind == LOGS:
        lines = command.detail.get("lines")
        for line in lines if isinstance(lines, list) else ():
            click.echo(printable(str(line)))
        return
    for key, value in sorted(command.detail.items()):
        if not isinstance(value, dict | list):
            click.echo(f"  {key}: {printable(str(value))}")
