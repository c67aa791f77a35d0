"""The spool of a running agent: its tasks and its counters."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from securesystemslib.signer import CryptoSigner

from device_agents.control.requests import RequestClient
from device_agents.deployment import UpdateRecord, UpdateState
from device_agents.download.gate import Gate
from device_agents.spool.making import SpoolParts
from device_agents.spool.uploader import Uploader
from edgekit.errors import UnavailableError
from edgekit.protocols import Transport


class RunningSpool:
    """Joins the spool with the agent's connection.

    Args:
        device, fleet: Names of the device and its fleet.
        parts: The spool.
        requests, transport, signer: As `Uploader`.
        needed: Says why the agent needs the link itself; empty where it does not.
        tell: Sends an event, by its kind and message.
    """

    def __init__(
        self,
        device: str,
        fleet: str,
        parts: SpoolParts,
        *,
        requests: RequestClient,
        transport: Transport,
        signer: CryptoSigner,
        needed: Callable[[], str],
        tell: Callable[[str, str], None],
    ) -> None:
        self._parts = parts
        parts.collector.tell = tell
        self._uploader = Uploader(
            device,
            fleet,
            spool=parts.spool,
            requests=requests,
            transport=transport,
            signer=signer,
            hold=lambda: parts.hold() or needed(),
            allowed=parts.allowed,
            stored=parts.collector.stored,
            timings=parts.timings,
            counts=parts.collector.counts,  # so that the command `collect` answers with all of them
        )

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """The tasks that store and send samples until they are cancelled."""
        return [self._parts.collector.run(), self._uploader.run()]

    def counters(self) -> dict[str, float]:
        """Rising counters by their names in telemetry."""
        counts = {**self._parts.collector.counts, "evicted": self._parts.spool.evicted}
        return {f"agent.samples_{name}": float(count) for name, count in counts.items()}


def link_needed(states: Mapping[str, UpdateRecord], gate: Gate) -> str:
    """Why the link is not free for samples; empty where it is.

    Args:
        states: Update state of each model.
        gate: The hours and the metered link of the owner.
    """
    for name, state in states.items():
        if state.name in (UpdateState.RESOLVING, UpdateState.DOWNLOADING) and state.waiting is None:
            return f"an update of {name} is downloaded"
    try:
        gate.check_open()
    except UnavailableError as error:
        return str(error)
    return ""
