"""`edgekit demo`: run the whole journey on this machine, from training to fallback."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from types import FrameType

import click

from edgekit.cli.common import console
from edgekit.cli.common.console import needs_extra, note
from edgekit.cli.common.numbers import Whole
from edgekit.errors import SettingsError


@click.command()
@click.option("--keep", is_flag=True, help="Leave the processes running and print commands to try.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Work in this new folder [default: a temporary one]."
)
@click.option(
    "--stop", type=click.Path(path_type=Path, exists=True), help="Stop the processes that --keep left in this folder."
)
@click.option(
    "--seed",
    type=Whole(0, 2**31),
    default=20,
    show_default=True,
    help="Seed of the training; each seed gives other models.",
)
@click.option("--no-cache", is_flag=True, help="Train and convert anew; use nothing of earlier runs.")
def demo(keep: bool, folder: Path | None, stop: Path | None, seed: int, no_cache: bool) -> None:
    """Train, convert, publish, roll out, serve and fall back, with real components on this machine.

    Exits 0 only if every claim of the demo holds.

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
        note(f"stopped {', '.join(names)}" if names else "nothing was running")
        return
    with needs_extra("all"):
        from edgekit.demo.cache import demo_cache
        from edgekit.demo.journey import Journey
    if folder and folder.exists() and any(folder.iterdir()):
        raise SettingsError(
            f"{folder} is not empty", advice="Name a new folder, or stop a kept demo with `edgekit demo --stop`."
        )
    work = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix="edgekit-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    processes = Processes(work)
    cache = None if no_cache else demo_cache()
    journey = Journey(work, processes, console, seed=seed, cache=cache)  # the console module is the demo's printer
    keep_running = False
    try:
        journey.run()
        keep_running = keep
    finally:
        if not keep_running:
            processes.stop_all()
            if folder is None:
                shutil.rmtree(work, ignore_errors=True)
    if keep_running:
        note(f"running: {', '.join(processes.names)}. Commands to try, with this environment's commands on PATH:")
        for line in journey.hints():
            click.echo(f"  {line}")
    else:
        note(
            "every claim holds; all files were removed" if folder is None else f"every claim holds; files are in {work}"
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
