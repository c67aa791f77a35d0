"""`edgekit controller token`: who may use the controller's API and pages."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.rollout.text import time_text

ROLES = ("viewer", "operator", "admin")


@click.group()
def token() -> None:
    """Tokens of operators for the controller's API and pages.

    \b
    Examples:
      edgekit controller token add ann --role operator
      edgekit controller token list
    """


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default="viewer",
    show_default=True,
    help="viewer: read; operator: also start and steer rollouts; admin: also see who has a token.",
)
@json_option
def add(name: str, role: str, as_json: bool) -> None:
    """Make a token for the operator NAME and print it on stdout. It is not stored and cannot be shown again.

    \b
    Example:
      edgekit controller token add ann --role operator
    """
    with fleet_state(control_settings()) as state:
        from edgekit.state import Role

        made = state.operators.add(name, Role(role), time.time())
    if as_json:
        print_json({"name": name, "role": role, "token": made})
        return
    note(f"token of {name} with the role {role}; keep it like a password:")
    click.echo(made)


@token.command(name="list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List who has a token.

    \b
    Example:
      edgekit controller token list
    """
    with fleet_state(control_settings()) as state:
        found = state.operators.all()
    if as_json:
        print_json(found)
    elif found:
        print_table(("name", "role", "made"), [(one.name, one.role.value, time_text(one.created)) for one in found])
    else:
        note("Nobody has a token. Make one: edgekit controller token add NAME --role operator")


@token.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the token of NAME; it stops working at once, and its logins end.

    \b
    Example:
      edgekit controller token remove ann
    """
    with fleet_state(control_settings()) as state:
        removed = state.operators.remove(name, time.time())
    note(f"{name} ({removed.role.value}) has no token any more")
