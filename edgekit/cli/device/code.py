"""`edgekit device code`: codes with which devices enroll themselves."""

from __future__ import annotations

import secrets
import time

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, usage
from edgekit.cli.common.fleet import fleet_state, parse_labels
from edgekit.cli.common.numbers import Number, Whole
from edgekit.cli.rollout.text import time_text
from edgekit.identity.join import SECRET_BYTES, StoredCode, check_limits, make_code


@click.command()
@click.option("--quota", type=Whole(1, 100_000), default=1, show_default=True, help="Devices that may use it.")
@click.option("--hours", type=Number(0.01, 8760), default=24.0, show_default=True, help="Lifetime of the code.")
@click.option("--id", "name", default="", metavar="ID", help="The only device name that it is for.")
@click.option("--target", default="", help="The only target profile that it is for.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the devices; may be repeated.")
@json_option
def code(quota: int, hours: float, name: str, target: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Make a code for `edgekit-agent join`. It is shown once; whoever has it can enroll a device.

    \b
    Examples:
      edgekit device code --id pi-1 --target raspberry-pi-4
      edgekit device code --quota 50 --hours 8 --label site=north
    """
    settings = control_settings()
    now = time.time()
    with usage():
        parsed = parse_labels(labels)
        check_limits(now + hours * 3600, quota, now)
    text, made = make_code(settings.fleet, secrets.token_bytes(SECRET_BYTES + 5))
    stored = StoredCode(made.token, made.key, now + hours * 3600, quota, name, target, parsed)
    with fleet_state(settings) as state:
        state.certificates.add_code(stored, now)
    if as_json:
        print_json({"code": text, "token": made.token, "expires": stored.expires, "quota": quota})
        return
    click.echo(text)
    note(f"for {quota} device{'' if quota == 1 else 's'} until {time_text(stored.expires)}; it is not shown again")
