"""`edgekit registry export`: writes an update file for devices without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import ProgressLine, control_settings, json_option, needs_extra, note, print_json
from edgekit.cli.common.fleet import fleet_state, read_root
from edgekit.cli.common.selection import parse_cohort, with_groups
from edgekit.cli.registry.options import registry_options
from edgekit.cli.rollout.text import time_text
from edgekit.errors import NotFoundError, UnavailableError
from edgekit.filters.values import FLAGS
from edgekit.mqtt.topics import DEVICE_NAME

if TYPE_CHECKING:
    from edgekit.registry.offline import Order
    from edgekit.settings import ControlSettings
    from edgekit.state import FleetState

SHOWN = 10


@click.command(name="export")
@click.option("--for", "who", required=True, metavar="DEVICE|FILTER", help="A device, or a filter that selects some.")
@click.option(
    "-o",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file, for example x.edgekit.",
)
@registry_options
@json_option
def export(who: str, path: Path, url: str | None, keys: Path | None, as_json: bool) -> None:
    """Write what devices without a network need into one file: metadata, their assignments, and the bundles.

    The assignments are those of `edgekit rollout start` or `edgekit assign`, signed by a running controller. On the
    device, `edgekit-agent import FILE` verifies and installs them as if they came over the network.

    \b
    Examples:
      edgekit registry export --for pi-1 -o pi-1.edgekit
      edgekit registry export --for 'label.site == mine and offline' -o mine.edgekit
    """
    settings = control_settings(registry=url, keys=keys)
    with needs_extra("registry"):
        from edgekit.registry.offline import export_update
        from edgekit.storage.stores import open_store
    with fleet_state(settings) as state:
        orders, idle = _orders(state, settings, who)
    done = export_update(
        path,
        open_store(settings.registry),
        read_root(settings),
        settings.fleet,
        orders,
        now=time.time(),
        progress=ProgressLine("export"),
    )
    if as_json:
        print_json(done)
        return
    click.echo(f"{path} has {len(done.bundles)} bundle(s) for {len(done.devices)} device(s), {done.bytes} bytes.")
    click.echo(f"Devices accept it until {time_text(done.expires)}; run there: edgekit-agent import {path.name}")
    if idle:
        note(f"nothing is assigned to {_names(idle)}")


def _orders(state: FleetState, settings: ControlSettings, who: str) -> tuple[list[Order], list[str]]:
    """The signed assignments of the chosen devices, and the names of those without one.

    Raises:
        NotFoundError: nobody is chosen, there is no such device, or nothing is assigned to any of them.
        UnavailableError: an assignment is not signed.
    """
    from edgekit.registry.offline import Order

    known = {one.name for one in state.devices.all()} if DEVICE_NAME.fullmatch(who) else set()
    if who in known:
        names = [who]
    elif DEVICE_NAME.fullmatch(who) and who not in FLAGS:  # no other single word is a filter
        raise state.devices.unknown(who)
    else:
        cohort = with_groups(state, parse_cohort((), (), who))
        names = [
            view.device for view in state.devices.views(time.time(), settings.offline_after_seconds, cohort=cohort)
        ]
        if not names:
            raise state.nobody(cohort)
    stored = {name: state.assignments.get(name) for name in names}
    busy = {name: one for name, one in stored.items() if one is not None and (one.entries or one.uninstall)}
    idle = [name for name in stored if name not in busy]
    if not busy:
        raise NotFoundError(
            f"nothing is assigned to {_names(idle)}", advice="Start a rollout or add a standing assignment first."
        )
    unsigned = [name for name, one in busy.items() if one.payload is None or one.expires <= time.time() or one.fault]
    if unsigned:
        raise UnavailableError(
            f"the assignments of {_names(unsigned)} are not signed",
            advice="Run `edgekit controller run` for a moment; it signs them.",
        )
    orders = [
        Order(name, one.payload or b"", tuple(one.entries.values()), one.expires) for name, one in sorted(busy.items())
    ]
    return orders, idle


def _names(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} others" if len(names) > SHOWN else "")
