"""`edgekit device code`: codes with which devices enroll themselves."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import control_settings, json_option, needs_extra, note, print_json, print_table, usage
from edgekit.cli.common.fleet import fleet_state, parse_labels
from edgekit.cli.common.numbers import Number, Whole
from edgekit.cli.rollout.text import time_text
from edgekit.identity.join import StoredCode, check_limits


@click.command()
@click.option("--quota", type=Whole(1, 100_000), default=1, show_default=True, help="Devices that may use it.")
@click.option("--hours", type=Number(0.01, 8760), default=24.0, show_default=True, help="Lifetime of the code.")
@click.option("--id", "name", default="", metavar="ID", help="The only device name that it is for.")
@click.option("--target", default="", help="The only target profile that it is for.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the devices; may be repeated.")
@click.option("--list", "listed", is_flag=True, help="Instead, list the ids of the codes that can still be used.")
@click.option("--revoke", metavar="ID", help="Instead, end the code with this id: its middle part.")
@json_option
def code(
    quota: int,
    hours: float,
    name: str,
    target: str,
    labels: tuple[str, ...],
    listed: bool,
    revoke: str | None,
    as_json: bool,
) -> None:
    """Make a code for `edgekit-agent join`. It is shown once; whoever has it can enroll a device.

    \b
    Examples:
      edgekit device code --id pi-1 --target raspberry-pi-4
      edgekit device code --quota 50 --hours 8 --label site=north
      edgekit device code --list
      edgekit device code --revoke k7f3q2ab
    """
    settings = control_settings()
    now = time.time()
    if listed or revoke is not None:
        if listed and revoke is not None:
            raise click.UsageError("Give --list or --revoke.")
        with fleet_state(settings) as state:
            found = state.certificates.codes(now) if revoke is None else [state.certificates.revoke_code(revoke, now)]
        _print_codes(found, revoked=revoke is not None, as_json=as_json)
        return
    with needs_extra("controller"):
        from edgekit.controller.administration import new_code
    with usage():
        parsed = parse_labels(labels)
        check_limits(now + hours * 3600, quota, now)
    with fleet_state(settings) as state:
        made = new_code(state, now, quota=quota, hours=hours, name=name, target=target, labels=parsed)
    from edgekit.identity.authority import CERTIFICATE_FILE

    if not (settings.keys / CERTIFICATE_FILE).exists():
        note(f"there is no {CERTIFICATE_FILE} in {settings.keys}: codes are answered by a controller that has the")
        note("authority's key; make one with: edgekit ca init")
    if as_json:
        print_json(made)
        return
    click.echo(made.code)
    note(f"for {quota} device{'' if quota == 1 else 's'} until {time_text(made.expires)}; it is not shown again")


def _print_codes(codes: list[StoredCode], *, revoked: bool, as_json: bool) -> None:
    """Print what codes are for; never the keys that prove them."""
    rows = [
        {
            "token": one.token,
            "expires": one.expires,
            "quota": one.left,
            "device": one.name,
            "target": one.target,
            "labels": one.labels,
        }
        for one in codes
    ]
    if as_json:
        print_json(rows[0] if revoked else rows)
    elif revoked:
        note(f"enrollment code {codes[0].token} has ended; devices that it enrolled stay")
    elif not codes:
        note("No enrollment code can be used.")
    else:
        headers = ("id", "until", "devices", "for", "labels")
        table = [
            (
                one.token,
                time_text(one.expires),
                str(one.left),
                " ".join(filter(None, (one.name, one.target))) or "any",
                ", ".join(f"{key}={value}" for key, value in sorted(one.labels.items())),
            )
            for one in codes
        ]
        print_table(headers, table)
