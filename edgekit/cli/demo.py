"""`edgekit demo`: the whole journey on this machine."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from types import FrameType

import click

from edgekit.cli.common import console
from edgekit.cli.common.console import needs_extra, note
from edgekit.errors import SettingsError


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running and print what to try.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Work in this new folder [default: a temporary one]."
)
@click.option(
    "--stop", type=click.Path(path_type=Path, exists=True), help="End what --keep left running in this folder."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31), default=20, show_default=True, help="Of the training; other models each."
)
def demo(keep: bool, folder: Path | None, stop: Path | None, seed: int) -> None:
    """Train, convert, publish, roll out, serve and fall back, on real parts on this machine.

    Exits 0 only when every claim of the demo held.

    \b
    Examples:
      edgekit demo
      edgekit demo --keep --dir ./edgekit-demo
      edgekit demo --stop ./edgekit-demo
      edgekit demo --seed 7
    """
    from edgekit.demo.processes import Processes, stop_kept

    if stop:
        names = stop_kept(stop)
        note(f"ended {', '.join(names)}" if names else "nothing was running")
        return
    with needs_extra("all"):
        from edgekit.demo.journey import Journey
    if folder and folder.exists() and any(folder.iterdir()):
        raise SettingsError(
            f"{folder} is not empty", advice="Name a new folder, or end a kept demo with `edgekit demo --stop`."
        )
    place = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix="edgekit-demo-"))
    place.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    processes = Processes(place)
    journey = Journey(place, processes, console, seed=seed)  # the console module is the demo's printer
    kept = False
    try:
        journey.run()
        kept = keep
    finally:
        if not kept:
            processes.stop_all()
            if folder is None:
                shutil.rmtree(place, ignore_errors=True)
    if kept:
        note(f"running: {', '.join(processes.names)}. To try, with this environment's commands on PATH:")
        for line in journey.hints():
            click.echo(f"  {line}")
    else:
        note(
            "every claim held; nothing was left behind" if folder is None else f"every claim held; files are in {place}"
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
