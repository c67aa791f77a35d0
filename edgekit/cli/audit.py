"""`edgekit audit`: the log of every change of the fleet state."""

from __future__ import annotations

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Whole
from edgekit.cli.rollout.text import time_text

CELL_WIDTH = 60


@click.group()
def audit() -> None:
    """Show and verify the log of every change of the fleet state.

    \b
    Examples:
      edgekit audit list --what rollout
      edgekit audit verify
    """


@audit.command(name="list")
@click.option("--limit", type=Whole(1, 100_000), default=50, show_default=True, metavar="N", help="Number of entries.")
@click.option("--before", type=Whole(1), metavar="NUMBER", help="Only entries before this one: the next page.")
@click.option("--what", default="", metavar="TEXT", help="Only changes that begin with TEXT, for example rollout.")
@click.option("--subject", default="", metavar="NAME", help="Only changes of this device, rollout or group.")
@json_option
def list_entries(limit: int, before: int | None, what: str, subject: str, as_json: bool) -> None:
    """List changes, the newest first: who made them, and the state before and after.

    \b
    Example:
      edgekit audit list --subject pi-1
    """
    with fleet_state(control_settings()) as state:
        entries = state.audit.entries(limit=limit, before=before, what=what, subject=subject)
    if as_json:
        print_json(entries)
    elif entries:
        rows = [
            (e.number, time_text(e.at), e.who, e.what, e.subject, _short(e.before), _short(e.after)) for e in entries
        ]
        print_table(("number", "time", "who", "what", "subject", "before", "after"), rows)
    else:
        note("The audit log has no such entry.")


@audit.command()
@click.option(
    "--head",
    metavar="NUMBER:HASH",
    help="An entry that an earlier `verify` printed: it must still be in the log. Shows also that none was cut off.",
)
@json_option
def verify(head: str | None, as_json: bool) -> None:
    """Check that no entry was changed, inserted or removed; exit 3 if one was.

    Note the printed head somewhere else: whoever can write the database could compute the whole log anew.

    \b
    Example:
      edgekit audit verify --head 120:3f5a9c0d
    """
    noted = _parse_head(head) if head else None
    with fleet_state(control_settings()) as state:
        number, digest = state.audit.verify(noted)
    if as_json:
        print_json({"entries": number, "head": f"{number}:{digest}"})
        return
    click.echo(f"{number} entries are whole; head {number}:{digest}")


def _parse_head(text: str) -> tuple[int, str]:
    number, colon, digest = text.partition(":")
    if not colon or not number.isdecimal() or len(number) > 15 or len(digest) < 8:
        raise click.UsageError(f"{text!r} is no head such as 120:3f5a9c0d, at least 8 characters of the hash.")
    return int(number), digest.lower()


def _short(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        text = ", ".join(f"{key}={_item(one)}" for key, one in value.items() if one not in (None, "", [], {}))
    else:
        text = str(value)
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 3] + "..."


def _item(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} of them" if len(value) > 3 else " ".join(map(str, value))
    return str(value)
