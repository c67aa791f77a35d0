"""`edgekit-agent run`."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
from pathlib import Path

import click

from device_agents.cli.options import config_option
from device_agents.remote.restart import restart_process
from device_agents.systemd import Notifier
from edgekit.cli.common.console import ignore_hangup, needs_extra


@click.command()
@config_option
@click.option("--http", help="host:port of the local endpoint; port 0 takes any free port.")
@click.option("--broker", metavar="URL", help="URL of the broker, instead of the one in the settings.")
def run(config: Path, http: str | None, broker: str | None) -> None:
    """Run until interrupted. Print one line with the local URL when the installed models answer.

    \b
    Example:
      edgekit-agent run --config pi-1/agent.toml
    """
    ignore_hangup()
    environment, notifier = dict(os.environ), Notifier.take()
    # OpenBLAS starts a thread a core when numpy is imported. Models run in their runtime, which has threads of its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # nearly all that a start makes stays, so the search for garbage would find nothing

    def say_ready(line: str) -> None:
        click.echo(line)
        gc.freeze()
        gc.enable()

    with needs_extra("agent"):
        importlib.import_module("numpy")  # before msgspec, whose typing_extensions makes numpy's typing slow to import
        from device_agents.running import run_agent

        again = asyncio.run(run_agent(config, {"http": http, "broker": broker}, notifier, say_ready))
    if again:
        restart_process(environment, managed=notifier.managed)
