"""`edgekit controller webhook`: who is told of rollouts and alarms."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import (
    control_settings,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
    usage,
)
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import ROLLOUT
from edgekit.cli.rollout.text import time_text

KINDS = ("rollout", "alarm", "audit")


@click.group()
def webhook() -> None:
    """Tell other systems of rollouts and alarms: signed, in order, and again until they have it.

    \b
    Examples:
      edgekit controller webhook add https://hooks.example/edgekit
      edgekit controller webhook list
    """


@webhook.command()
@click.argument("url")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    help="rollout: starts, decisions and ends; alarm: events with an error; audit: every change. May be repeated "
    "[default: rollout and alarm].",
)
@json_option
def add(url: str, kinds: tuple[str, ...], as_json: bool) -> None:
    """Post events to URL from now on; prints the secret that verifies their signature on stdout.

    \b
    Example:
      edgekit controller webhook add https://hooks.example/edgekit --kind alarm
    """
    with needs_extra("controller"):
        from edgekit.controller.posting import check_receiver
    with usage():
        check_receiver(url)
    with fleet_state(control_settings()) as state:
        made, secret = state.webhooks.add(url, tuple(dict.fromkeys(kinds)) or ("rollout", "alarm"), time.time())
    if as_json:
        print_json({"id": made.id, "url": made.url, "kinds": made.kinds, "secret": secret})
        return
    note(f"webhook {made.id} is told of {' and '.join(made.kinds)}; the secret of its signatures:")
    click.echo(secret)


@webhook.command(name="list")
@json_option
def list_webhooks(as_json: bool) -> None:
    """List the receivers, what they wait for, and why their last delivery failed.

    \b
    Example:
      edgekit controller webhook list
    """
    with fleet_state(control_settings()) as state:
        found = state.webhooks.all()
    if as_json:
        print_json(found)
    elif found:
        rows = [
            (one.id, one.url, ", ".join(one.kinds), time_text(one.delivered), one.pending, one.failures, one.error)
            for one in found
        ]
        print_table(("id", "url", "kinds", "delivered", "pending", "failures", "error"), rows)
    else:
        note("There is no webhook. Add one: edgekit controller webhook add URL")


@webhook.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
@json_option
def skip(number: int, as_json: bool) -> None:
    """Leave out the next notice of the receiver ID, which it refuses; those after it are posted at once.

    \b
    Example:
      edgekit controller webhook skip 1
    """
    with fleet_state(control_settings()) as state:
        notice = state.webhooks.skip(number, time.time())
    if as_json:
        print_json(notice)
        return
    note(f"webhook {number} does not get {notice.id} ({notice.kind} of {notice.subject or 'the fleet'})")


@webhook.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
def remove(number: int) -> None:
    """Remove the receiver ID; it gets nothing more.

    \b
    Example:
      edgekit controller webhook remove 1
    """
    with fleet_state(control_settings()) as state:
        state.webhooks.remove(number, time.time())
    note(f"webhook {number} is removed")
