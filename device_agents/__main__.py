"""`edgekit-agent`: run the agent, show its stored state, check that it can run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from device_agents.deployment import UpdateRecord
from device_agents.join import join
from device_agents.remote.logs import LogTail
from device_agents.remote.overlay import load_agent_settings
from device_agents.remote.restart import restart_process
from device_agents.storage.consents import Consents, asks_consent
from device_agents.storage.journal import Journal
from device_agents.storage.slots import Pointer, Slots
from device_agents.systemd import Notifier
from device_agents.watchdog import watched
from edgekit.cli.common.console import ignore_hangup, json_option, needs_extra, note, print_json, print_table
from edgekit.cli.completion import completion_command
from edgekit.cli.main import run as run_command
from edgekit.cli.version import VersionedGroup, version_options
from edgekit.errors import DataError, EdgekitError, NotFoundError, RefusedError
from edgekit.settings import AgentSettings, load_settings
from edgekit.storage.disk import FolderDisk


@click.group(cls=VersionedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--verbose", "-v", is_flag=True, help="Log every step; show tracebacks.")
@version_options
def agent(verbose: bool) -> None:
    """Keep the models of this device up to date, and answer local applications.

    \b
    Examples:
      edgekit-agent check --config pi-1/agent.toml
      edgekit-agent run --config pi-1/agent.toml
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("device_agents").setLevel(logging.DEBUG if verbose else logging.INFO)


agent.add_command(completion_command("edgekit-agent"))
agent.add_command(join)


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config``."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("agent.toml"),
        envvar="EDGEKIT_AGENT_CONFIG",
        show_default=True,
        help="Settings file of the agent, as `edgekit device enroll` wrote it.",
    )(function)


@agent.command()
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
    if asyncio.run(_run(config, {"http": http, "broker": broker}, notifier)):
        restart_process(environment, managed=notifier.managed)


async def _run(config: Path, flags: dict[str, Any], notifier: Notifier) -> bool:
    """Run the agent; True if it is to be started again."""
    tail = LogTail()
    logging.getLogger().addHandler(tail)
    settings = load_settings(AgentSettings, file=config, flags=flags)
    with needs_extra("agent"):
        from device_agents.facts import measure_facts

        measure = functools.partial(measure_facts, settings.target, state=settings.state, tags=settings.tags)
        measuring = asyncio.get_running_loop().run_in_executor(None, measure)  # during the imports
        from device_agents.assemble import make_agent, make_inference, make_remote, single_instance
        from edgekit.serving.endpoints import Endpoints, open_endpoints
        from edgekit.serving.http.limits import Limits
    with single_instance(settings.state):
        settings, overlay = load_agent_settings(config, flags, start=True)
        facts = await measuring
        inference, cloud = make_inference(settings)
        try:
            async with inference:
                agent = make_agent(settings, inference, facts, make_remote(config, flags, tail, overlay))
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, agent.stop)
                await agent.start()
                limits = Limits(connections=settings.max_connections, drain_seconds=settings.drain_seconds)
                addresses = Endpoints(settings.http, settings.socket, settings.grpc, settings.grpc_socket)
                async with open_endpoints(
                    inference, addresses, max_request_bytes=settings.max_request_bytes, limits=limits
                ) as endpoints:
                    click.echo(f"agent {settings.device} ready at {endpoints}")
                    async with (
                        watched(settings.watchdog_seconds),
                        notifier.running(f"ready at {endpoints}"),
                        _checking(settings, config),
                    ):
                        await agent.run()
        finally:
            if cloud is not None:
                cloud.close()
    return agent.restarting


@contextlib.asynccontextmanager
async def _checking(settings: AgentSettings, config: Path) -> AsyncIterator[None]:
    """Compare models and interfaces with the cloud tier meanwhile, where there is one."""
    if not settings.all_cloud_urls():
        yield
        return
    from device_agents.diagnostics.at_start import check_at_start
    from device_agents.diagnostics.checks import checks_of

    task = asyncio.ensure_future(check_at_start(checks_of(settings, config)["cloud tier"]))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@agent.command()
@config_option
@json_option
def status(config: Path, as_json: bool) -> None:
    """Show the stored state of the agent; works while the agent runs, and without a broker.

    \b
    Example:
      edgekit-agent status --config pi-1/agent.toml
    """
    settings = load_settings(AgentSettings, file=config)
    if not settings.state.is_dir():
        raise NotFoundError(
            f"there is no state folder {settings.state}", advice="The agent creates it when it first runs."
        )
    disk = FolderDisk(settings.state)
    journal = Journal(disk)
    models = {name: state for name, state in journal.models().items() if not state.is_gone}
    if as_json:
        print_json(
            {
                "device": settings.device,
                "fleet": settings.fleet,
                **msgspec.to_builtins(journal.record),
                "models": {
                    name: {**msgspec.to_builtins(state), "pointer": _pointer(disk, name)}
                    for name, state in models.items()
                },
            }
        )
        return
    record = journal.record
    note(f"{settings.device} of fleet {settings.fleet}: session {record.session}, assignment {record.assignment}")
    headers = ("MODEL", "VERSION", "SLOT", "DIGEST", "SINCE", "STATE", "LAST DEPLOYMENT")
    print_table(headers, [_row(name, state) for name, state in sorted(models.items())])


def _pointer(disk: FolderDisk, model: str) -> Pointer | None:
    """The pointer on the disk; None when it is damaged. The agent repairs it."""
    try:
        return Slots(disk, model).pointer()
    except DataError:
        return None


def _row(name: str, state: UpdateRecord) -> tuple[str, ...]:
    active, outcome = state.active, state.outcome
    last = f"{outcome.version} {outcome.result}" if outcome else "none"
    if outcome and outcome.error:
        last += f": {outcome.error}: {outcome.message}"
    if state.note:
        last = f"{state.deployment.version if state.deployment else ''} waits: {state.note}"
    if active is None:
        return (name, "none", "", "", "", state.name.value, last)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(active.since))
    return (name, active.version, active.slot, active.digest[:12], since, state.name.value, last)


@agent.command()
@config_option
@json_option
def check(config: Path, as_json: bool) -> int:
    """Check everything that the agent needs, and explain what is missing. Exit 1 when a check fails.

    \b
    Example:
      edgekit-agent check --config pi-1/agent.toml
    """
    settings, overlay = load_agent_settings(config, {}, start=False)
    rows = [{"check": "settings", "ok": True, "found": str(config)}]
    with needs_extra("agent"):
        from device_agents.diagnostics.checks import checks_of
    for name, probe in checks_of(settings, config, overlay).items():
        try:
            rows.append({"check": name, "ok": True, "found": probe()})
        except EdgekitError as error:
            rows.append({"check": name, "ok": False, "found": f"{error} {error.advice}".rstrip()})
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("CHECK", "", "FOUND"), [(row["check"], "ok" if row["ok"] else "FAILED", row["found"]) for row in rows]
        )
    return 0 if all(row["ok"] for row in rows) else 1


@agent.command()
@click.argument("model")
@click.option("--no", "declines", is_flag=True, help="Decline; another answer can be given later.")
@config_option
@json_option
def agree(model: str, declines: bool, config: Path, as_json: bool) -> None:
    """Agree to the update of MODEL that waits for it, or decline it; a running agent notices within seconds.

    \b
    Examples:
      edgekit-agent agree digits --config pi-1/agent.toml
      edgekit-agent agree digits --no
    """
    disk = FolderDisk(load_settings(AgentSettings, file=config).state)
    deployment = asks_consent(model, Journal(disk).models().get(model))
    Consents(disk).put(model, deployment.digest, not declines)
    if as_json:
        print_json({"model": model, "version": deployment.version, "agree": not declines})
    else:
        note(f"{model} {deployment.version}: {'declined' if declines else 'agreed'}")


@agent.command(name="import")
@click.argument("path", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@config_option
@json_option
def import_command(path: Path, config: Path, as_json: bool) -> int:
    """Install what an update file has for this device, without a network; exit 3 if it is refused.

    `edgekit registry export` writes the file. It is verified as if it came over the network, and the outcome is
    reported when there is a broker. Of a folder, the file with this device's newest assignment is taken. Stop the agent
    first: this command answers local applications meanwhile.

    \b
    Example:
      edgekit-agent import /media/stick/pi-1.edgekit --config pi-1/agent.toml
    """
    settings, _ = load_agent_settings(config, {}, start=False)
    with needs_extra("agent"):
        from device_agents.offline.running import import_file
    rows = asyncio.run(import_file(settings, path))
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("MODEL", "VERSION", "RESULT", ""),
            [(row.model, row.version, row.result, f"{row.error} {row.message}".strip()) for row in rows],
        )
    if any(row.result == "refused" for row in rows):
        return RefusedError.exit_code
    return 0 if all(row.result in ("succeeded", "current", "uninstalled") for row in rows) else 1


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 3 refused, 130 interrupted."""
    sys.exit(run_command(agent, "edgekit-agent"))


if __name__ == "__main__":
    main()
