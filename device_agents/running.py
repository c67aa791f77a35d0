"""Runs the agent's process: installed models answer first, and then the control plane is imported and started.

The control plane (MQTT, TUF, cryptography, updates, telemetry) is imported in a thread, while models answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from device_agents.assembly.serving import make_inference, make_installed, single_instance
from device_agents.remote.logs import LogTail
from device_agents.remote.overlay import load_agent_settings
from device_agents.systemd import Notifier
from device_agents.threads import in_thread
from device_agents.update.installed import InstalledModels
from device_agents.watchdog import watched
from edgekit.errors import EdgekitError, UnavailableError
from edgekit.repeats import limit_log_lines
from edgekit.serving.endpoints import Endpoints, open_endpoints
from edgekit.serving.http.limits import Limits
from edgekit.settings import AgentSettings, load_settings

if TYPE_CHECKING:
    from device_agents.agent import Agent
    from device_agents.inference.service import InferenceService
    from device_agents.remote_commands import RemoteParts
    from edgekit.bundle.compat import Facts

_log = logging.getLogger(__name__)

ANSWERING_SECONDS = 60.0  # installed models answer for so long before an agent that cannot be made ends
FIRST_ANSWERS_SECONDS = 0.1  # applications that waited for the agent ask at once; the import does not compete with them


class Stop:
    """The order to stop: it may come while nothing is there yet that could be stopped."""

    def __init__(self) -> None:
        self.given = False
        self._stop: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Give the order."""
        self.given = True
        if self._stop is not None:
            self._stop()

    def reaches(self, stop: Callable[[], None]) -> None:
        """Call `stop` when the order is given, or now if it was."""
        self._stop = stop
        if self.given:
            stop()


async def run_agent(config: Path, flags: Mapping[str, Any], notifier: Notifier, say: Callable[[str], object]) -> bool:
    """Run the agent until it is stopped.

    Args:
        config: The settings file.
        flags: Settings by key that win over it.
        notifier: Told when the whole agent is ready.
        say: Called with one line with the local URL when the installed models answer.

    Returns:
        True if the agent is to be started again.

    Raises:
        EdgekitError: the settings cannot be used, another agent runs, or the agent failed.
        ModuleNotFoundError: a package of the extra `agent` is not installed.
    """
    tail = LogTail()
    logging.getLogger().addHandler(tail)
    limit_log_lines()
    with single_instance(load_settings(AgentSettings, file=config, flags=flags).state):
        settings, overlay = load_agent_settings(config, flags, start=True)
        stop = Stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        inference, cloud = make_inference(settings)
        try:
            async with inference:
                installed = make_installed(settings, inference)
                await installed.start()
                async with _serving(settings, inference) as endpoints, watched(settings.watchdog_seconds):
                    say(f"agent {settings.device} ready at {endpoints}")
                    agent = await _start_or_answer(
                        settings,
                        inference,
                        installed,
                        lambda control: control.make_remote(config, flags, tail, overlay),
                        stop,
                    )
                    if agent is None:
                        return False
                    async with notifier.running(f"ready at {endpoints}"), _checking(settings, config):
                        await agent.run()
                    return agent.restarting
        finally:
            if cloud is not None:
                cloud.close()


def _serving(settings: AgentSettings, inference: InferenceService) -> contextlib.AbstractAsyncContextManager[Endpoints]:
    limits = Limits(connections=settings.max_connections, drain_seconds=settings.drain_seconds)
    addresses = Endpoints(settings.http, settings.socket, settings.grpc, settings.grpc_socket)
    return open_endpoints(inference, addresses, max_request_bytes=settings.max_request_bytes, limits=limits)


async def _start_or_answer(
    settings: AgentSettings,
    inference: InferenceService,
    installed: InstalledModels,
    remote: Callable[[Any], RemoteParts],
    stop: Stop,
) -> Agent | None:
    """As `_start_agent`. Where the agent cannot be made, installed models answer for a while before the error.

    The service manager starts the agent again then. Without that while, local answers would be gone most of the time.
    """
    try:
        return await _start_agent(settings, inference, installed, remote, stop)
    except EdgekitError as error:
        if not inference.models() or stop.given:
            raise
        _log.error(
            "%s. %s The agent cannot start; installed models answer for %.0f s, then it ends, to be started again",
            *(error, error.advice, ANSWERING_SECONDS),
        )
        stopped = asyncio.Event()
        stop.reaches(stopped.set)
        try:
            await asyncio.wait_for(stopped.wait(), ANSWERING_SECONDS)
        except asyncio.TimeoutError:
            raise error from None
        return None


async def _start_agent(
    settings: AgentSettings,
    inference: InferenceService,
    installed: InstalledModels,
    remote: Callable[[Any], RemoteParts],
    stop: Stop,
) -> Agent | None:
    """Import, make and start the agent around the installed models, which answer already.

    Args:
        settings, inference, installed: The parts that answer.
        remote: Makes the remote commands, given the imported control plane.
        stop: The order to stop.

    Returns:
        The agent; None if the order to stop came before.

    Raises:
        EdgekitError: the agent cannot be made. The session has ended in order then, because no model caused that.
    """
    made: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()

    async def consent(model: str, agreed: bool) -> str:
        return await (await asyncio.shield(made)).consent(model, agreed)

    inference.ask_consent(consent)
    try:
        await asyncio.sleep(FIRST_ANSWERS_SECONDS)
        control, facts = await asyncio.gather(in_thread(_import_control), in_thread(_measure, settings))
        if stop.given:
            await in_thread(installed.journal.end_session)
            return None
        agent: Agent = control.make_agent(settings, inference, facts, remote(control), installed=installed)
        await agent.start()
        made.set_result(agent)
    except BaseException:
        await in_thread(installed.journal.end_session)
        raise
    finally:
        if not made.done():
            made.set_exception(UnavailableError("the agent stops"))
            made.exception()  # retrieved: nobody may have waited for it
    stop.reaches(agent.stop)
    return agent


def _import_control() -> ModuleType:
    return importlib.import_module("device_agents.assembly.control")


def _measure(settings: AgentSettings) -> Facts:
    from device_agents.facts import measure_facts  # not before the first answer: it may start a process

    return measure_facts(settings.target, state=settings.state, tags=settings.tags)


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
