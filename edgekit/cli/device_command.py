"""`edgekit device command`: send a signed command to one device, or to all that a filter selects."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, printable
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Seconds
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.errors import EdgekitError, UnavailableError
from edgekit.mqtt.messages import COMMAND_KINDS
from edgekit.rollout.cohort import Cohort

if TYPE_CHECKING:
    from edgekit.state import FleetState, StoredCommand

POLL_SECONDS = 0.2


@click.command()
@click.argument("words", metavar="[ID] KIND", nargs=-1, required=True)
@selection_options
@click.option("--expires", type=Seconds(1, 86_400), default=60.0, show_default=True, metavar="SECONDS")
@click.option("--wait", is_flag=True, help="Wait for the answers; exit 1 if one fails or does not come.")
@json_option
def command(
    words: tuple[str, ...],
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    expires: float,
    wait: bool,
    as_json: bool,
) -> None:
    """Send the device ID, or all devices that the options select, the signed command KIND (self-test).

    \b
    Examples:
      edgekit device command pi-1 self-test --wait
      edgekit device command self-test --filter 'label.site == north and online'
    """
    cohort = parse_cohort(targets, labels, filter_text)
    name, kind = _words(words, cohort)
    settings = control_settings()
    with fleet_state(settings) as state:
        if name:
            state.devices.get(name)
            names = [name]
        else:
            cohort = with_groups(state, cohort)
            views = state.devices.views(time.time(), settings.offline_after_seconds, cohort=cohort)
            names = [view.device for view in views]
            if not names:
                raise state.nobody(cohort)
        now = time.time()
        sent = [state.commands.add(one, kind, now=now, expires=now + expires) for one in names]
        answers = [_await_answer(state, one) for one in sent] if wait else sent
    if as_json:
        print_json(answers[0] if name else answers)
    elif not wait:
        whom = (
            f"number {sent[0].number} will be sent to {name} if it is" if name else f"is sent to {len(sent)} that are"
        )
        note(f"{kind} {whom} online within {expires:g} s")
    if wait:
        _report(answers, expires, as_json)


def _words(words: tuple[str, ...], cohort: Cohort) -> tuple[str, str]:
    """The device's name, empty with a selection, and the kind of the command."""
    kind = words[-1]
    if kind not in COMMAND_KINDS:
        raise click.UsageError(f"{kind!r} is no command; commands are {', '.join(COMMAND_KINDS)}.")
    if (len(words) == 2) == bool(cohort.text) or len(words) > 2:
        raise click.UsageError("Name one device (ID KIND), or select devices with --filter, --target or --label.")
    return words[0] if len(words) == 2 else "", kind


def _report(answers: list[StoredCommand], expires: float, as_json: bool) -> None:
    """Print the answers. Raises UnavailableError or EdgekitError for the first one that is missing or failed."""
    for answer in answers:
        if answer.ok and not as_json:
            click.echo(f"{answer.device}: {answer.kind} passed: {printable(answer.message)}")
    silent = [answer.device for answer in answers if answer.state != "done"]
    if silent:
        names = ", ".join(silent[:10]) + (" and others" if len(silent) > 10 else "")
        raise UnavailableError(
            f"{names} did not answer {answers[0].kind} within {expires:g} s",
            advice="Check with `edgekit device list` that it is online, and that `edgekit controller run` is running.",
        )
    for answer in answers:
        if not answer.ok:
            raise EdgekitError(f"{answer.device}: {answer.kind} failed: {answer.message}")


def _await_answer(state: FleetState, sent: StoredCommand) -> StoredCommand:
    while True:
        found = state.commands.get(sent.device, sent.number)
        if found.state in ("done", "expired") or time.time() > sent.expires + 1:
            return found
        time.sleep(POLL_SECONDS)
