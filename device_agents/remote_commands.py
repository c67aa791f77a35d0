"""Joins the remote commands of an agent: which kinds it offers, and what runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from device_agents.profiling.profiler import ProfileOptions, Profiler
from device_agents.remote.answer import CommandAnswer, Handler
from device_agents.remote.logs import LogTail
from device_agents.remote.overlay import Overlay, RemoteSettings
from device_agents.remote.self_tests import SelfTests
from device_agents.spool.collector import Collector
from device_agents.threads import in_thread
from edgekit.errors import TransportError
from edgekit.mqtt.command_arguments import (
    COLLECT,
    LOGS,
    PROFILE,
    RESTART,
    SELF_TEST,
    SET,
    CollectArguments,
    NoArguments,
)

CONNECTION_SECONDS = 3600.0


class RemoteParts(NamedTuple):
    """Parts of the process around the agent that remote commands need; a part that is None is not offered.

    Attributes:
        logs: The newest lines of the log.
        overlay: Settings that were changed remotely.
        settings: Changes them.
        profile: Limits of measurements.
        restartable: Whether the process starts the agent again after `Agent.run` with `Agent.restarting`.
    """

    logs: LogTail | None = None
    overlay: Overlay | None = None
    settings: RemoteSettings | None = None
    profile: ProfileOptions | None = None
    restartable: bool = False


def handlers_of(
    parts: RemoteParts, *, self_tests: SelfTests, profiler: Profiler | None, collector: Collector | None
) -> dict[str, Handler]:
    """The handlers of the kinds that an agent offers."""
    handlers: dict[str, Handler] = {
        SELF_TEST: self_tests.answer,
        COLLECT: collector.answer if collector is not None else _collect_nothing,
    }
    if parts.logs is not None:
        handlers[LOGS] = parts.logs.answer
    if parts.settings is not None:
        handlers[SET] = parts.settings.answer
    if profiler is not None:
        handlers[PROFILE] = profiler.answer
    if parts.restartable:
        handlers[RESTART] = _restart
    return handlers


def notices(overlay: Overlay | None) -> list[tuple[str, str]]:
    """Kind and text of each event about remote settings that the start did not use."""
    if overlay is None:
        return []
    found = [("settings-ignored", overlay.fault)] if overlay.fault else []
    if overlay.reverted:
        values = ", ".join(f"{key} = {value}" for key, value in sorted(overlay.reverted.items()))
        found.append(("settings-reverted", f"no start with these settings reached the broker: {values}"))
    return found


async def confirm_settings(overlay: Overlay | None, wait_connected: Callable[[float], Awaitable[None]]) -> None:
    """Keep the remote settings once the agent has reached the broker. Raises DiskError."""
    while overlay is not None and overlay.record.previous is not None:
        try:
            await wait_connected(CONNECTION_SECONDS)
        except TransportError:
            await asyncio.sleep(0)
            continue
        await in_thread(overlay.confirm)


async def _collect_nothing(arguments: CollectArguments) -> CommandAnswer:
    return CommandAnswer(False, "this device keeps no samples: it has no sample_key, or one that cannot be used")


async def _restart(arguments: NoArguments) -> CommandAnswer:
    return CommandAnswer(True, "the agent restarts now", restart=True)
