"""`edgekit device command`: send a signed command to one device, or to all that a filter selects."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edgekit.cli.common.console import control_settings, dry_run_option, json_option, needs_extra, note, print_json
from edgekit.cli.common.fleet import fleet_state, registry_reader
from edgekit.cli.common.numbers import SHARE, Seconds, Whole
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.cli.device.results import await_answers, report_answers
from edgekit.errors import DataError
from edgekit.mqtt.command_arguments import (
    COLLECT,
    COMMAND_KINDS,
    LOGS,
    MAX_COLLECT_SECONDS,
    MAX_LINES,
    MAX_SAMPLES,
    PROFILE,
    SET,
)
from edgekit.mqtt.remote_settings import check_settable
from edgekit.mqtt.sample_reasons import REASONS
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.progress import count_of_devices

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgekit.controller.commanding import Digests, Plan
    from edgekit.settings import ControlSettings

_FIELDS = {"during": "seconds"}  # options that are not called as the argument of their command


class Words(NamedTuple):
    """The words of the command line: a device's name, empty with a selection; the command; and its own words."""

    name: str
    kind: str
    rest: tuple[str, ...]


@click.command()
@click.argument("words", metavar="[ID] KIND [WORD]...", nargs=-1, required=True)
@selection_options
@click.option("--lines", type=Whole(1, MAX_LINES), help="logs: number of the newest lines [default: 100].")
@click.option("--seconds", type=Seconds(0.1, 60), help="profile: how long runs are measured [default: 5].")
@click.option("--memory-mib", type=Whole(16, 1_048_576), help="profile: memory limit of its process [default: 1024].")
@click.option("--samples", type=Whole(0, MAX_SAMPLES), help="collect: number of samples; 0 ends it [default: 0].")
@click.option("--during", type=Seconds(1, MAX_COLLECT_SECONDS), help="collect: how long it goes on [default: 1d].")
@click.option(
    "--reason",
    "reasons",
    type=click.Choice(REASONS[1:]),
    multiple=True,
    help="collect: which answers; may be repeated [default: all of them, with --share none].",
)
@click.option(
    "--share",
    type=SHARE,
    help="collect: share of all answers, by chance [default: 0]. Alone it keeps nothing else, as certificates need it.",
)
@click.option("--model", metavar="NAME", help="collect: only of this model.")
@click.option("--no-restart", is_flag=True, help="set: wait for the agent's next start instead of restarting it.")
@click.option(
    "--expires",
    type=Seconds(1, 86_400),
    metavar="SECONDS",
    help="Time in which devices may begin [default: 60; profile: 600].",
)
@click.option("--wait", is_flag=True, help="Wait for the answers; exit 1 if one fails or does not come.")
@dry_run_option
@json_option
def command(
    words: tuple[str, ...],
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    lines: int | None,
    seconds: float | None,
    memory_mib: int | None,
    samples: int | None,
    during: float | None,
    reasons: tuple[str, ...],
    share: float | None,
    model: str | None,
    no_restart: bool,
    expires: float | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send a signed command to the device ID, or to all devices that the options select.

    \b
    self-test              run the golden samples of every live model
    profile MODEL VERSION  measure a published bundle: time, memory, temperature; it is removed afterwards
    logs                   the newest lines of the agent's log
    restart                stop in order and start again
    set KEY=VALUE...       change settings until they are taken back with KEY=; the agent restarts
    collect                keep samples for retraining, within the device's own limits; say how many there are

    \b
    Examples:
      edgekit device command pi-1 self-test --wait
      edgekit device command pi-1 set heartbeat_seconds=10 quiet_hours=08:00-18:00 --wait
      edgekit device command pi-1 collect --samples 100 --reason unsure --during 2h --wait
      edgekit device command pi-1 collect --samples 3000 --share 0.01 --during 7d
      edgekit device command profile digits 1.2.0 --filter 'label.site == north and online' --wait
      edgekit device command restart --filter 'label.site == north' --dry-run
    """
    cohort = parse_cohort(targets, labels, filter_text)
    asked = _words(words, cohort)
    options = _given(
        lines=lines,
        seconds=seconds,
        memory_mib=memory_mib,
        samples=samples,
        during=during,
        reasons=list(reasons) or None,
        share=share,
        model=model,
        no_restart=no_restart or None,
    )
    _check_options(asked.kind, options)
    settings = control_settings()
    with needs_extra("controller"):
        from edgekit.controller.commanding import CommandRequest, plan_commands, send
    request = CommandRequest(kind=asked.kind, args=_arguments(asked, options), expires_seconds=expires)
    with fleet_state(settings) as state:
        now = time.time()
        to = asked.name or with_groups(state, cohort)
        plan = plan_commands(state, request, to, now, _digests(settings))
        if plan.held:
            shown, others = ", ".join(plan.held[:10]), " and others" if plan.held[10:] else ""
            note(f"{len(plan.held)} in quarantine get no commands: {shown}{others}")
        if dry_run:
            _print_plan(plan, as_json=as_json)
            return
        sent = send(state, plan, now, request.lasts)
        answers = await_answers(state, sent) if wait else sent
    if as_json:
        print_json(answers[0] if asked.name else answers)
    elif not wait:
        whom = f"number {sent[0].number} will be sent to {asked.name} if it is" if asked.name else ""
        whom = whom or f"is sent to {len(sent)} that are"
        note(f"{asked.kind} {whom} online within {request.lasts:g} s; see: edgekit device results")
    if wait:
        report_answers(answers, request.lasts, as_json=as_json, alone=bool(asked.name))


def _words(words: tuple[str, ...], cohort: Cohort) -> Words:
    name, rest = ("", words) if cohort.text else (words[0], words[1:])
    if not rest or rest[0] not in COMMAND_KINDS:
        named = next((one for one in words if one in COMMAND_KINDS), "")
        if named or len(words) == 1:
            raise click.UsageError(
                "Name one device (ID KIND), or select devices (KIND) with --filter, --target or --label."
            )
        raise click.UsageError(f"{rest[0]!r} is no command; commands are {', '.join(COMMAND_KINDS)}.")
    kind, own = rest[0], rest[1:]
    if kind == PROFILE and len(own) != 2:
        raise click.UsageError("profile needs a model and its version: profile MODEL VERSION.")
    if kind not in (PROFILE, SET) and own:
        raise click.UsageError(f"{kind} takes no words, found {' '.join(own)!r}.")
    if kind == SET:
        _changes(own)
    return Words(name, kind, own)


def _changes(words: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if odd := [word for (key, equals, _), word in zip(pairs, words, strict=True) if not (key and equals)]:
        raise click.UsageError(f"{odd[0]!r} is not of the form KEY=VALUE; KEY= takes a value back.")
    changes = {key: value for key, _, value in pairs}
    try:
        check_settable(changes)
    except DataError as error:
        raise click.UsageError(f"{error}. {error.advice}".rstrip()) from error
    return changes


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_options(kind: str, given: dict[str, Any]) -> None:
    owners = {"lines": LOGS, "seconds": PROFILE, "memory_mib": PROFILE, "no_restart": SET}
    for name in given:
        if (owner := owners.get(name, COLLECT)) != kind:
            option = "reason" if name == "reasons" else name.replace("_", "-")
            raise click.UsageError(f"--{option} belongs to {owner}, not to {kind}.")


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.commands)
        return
    names = ", ".join(one.device for one in plan.commands)
    note(f"{plan.commands[0].kind} would be sent to {count_of_devices(len(plan.commands))}: {names}")
    if away := [one.device for one in plan.commands if not one.online]:
        note(f"offline now, so they get it only if they come back in time: {', '.join(away)}")


def _arguments(asked: Words, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the command, as the options and words give them."""
    if asked.kind == SET:
        return {"values": _changes(asked.rest), "restart": "no_restart" not in options}
    given = {_FIELDS.get(name, name): value for name, value in options.items()}
    return {"model": asked.rest[0], "version": asked.rest[1], **given} if asked.kind == PROFILE else given


def _digests(settings: ControlSettings) -> Digests:
    def find(model: str, version: str, targets: Collection[str]) -> dict[str, str]:
        with registry_reader(settings) as reader:
            return {target: reader.resolve(model, target, version).entry.sha256 for target in targets}

    return find
