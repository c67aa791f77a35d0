"""The device's report: which bundle of each model runs, and how the last deployments ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from device_agents.deployment import UpdateRecord
from device_agents.protocols import Inference
from device_agents.storage.journal import Journal
from device_agents.threads import in_thread
from edgekit.mqtt import messages
from edgekit.protocols import Clock


class ReportBuilder:
    """Makes the present report.

    Args:
        device, fleet: Names of the device and its fleet.
        journal: Gives report numbers.
        inference: Names the execution provider of each model.
        facts: Gives what the device measures of itself now.
        states: Gives the update state of each model.
        clock: Wall time.
        held: Gives the models whose deployments wait because the fleet is paused.
        session: Number of this run's session.
        run: Random id of this run of the agent.
        key: The device's public key, 32 bytes.
    """

    def __init__(
        self,
        device: str,
        fleet: str,
        *,
        journal: Journal,
        inference: Inference,
        facts: Callable[[], dict[str, Any]],
        states: Callable[[], Mapping[str, UpdateRecord]],
        clock: Clock,
        held: Callable[[], Mapping[str, messages.Waiting]] = dict,
        session: int,
        run: str,
        key: bytes,
    ) -> None:
        self._device, self._fleet, self._journal, self._inference = device, fleet, journal, inference
        self._facts, self._states, self._clock, self._held = facts, states, clock, held
        self._session, self._run, self._key = session, run, key

    async def report(self) -> messages.Reported:
        """The present report, with the next number. Raises DiskError when the number cannot be noted."""
        number = await in_thread(self._journal.next_report)
        states = self._states()
        return messages.Reported(
            device=self._device,
            fleet=self._fleet,
            number=number,
            at=self._clock.wall(),
            assignment=self._journal.record.assignment,
            models=self._models(states),
            outcomes={name: state.outcome for name, state in states.items() if state.outcome},
            facts=self._facts(),
            session=self._session,
            run=self._run,
            command=self._journal.record.command,
            key=self._key,
        )

    def _models(self, states: Mapping[str, UpdateRecord]) -> dict[str, messages.Running]:
        models = {name: self._running(name, state) for name, state in states.items()}
        for name, waiting in self._held().items():  # also models of which the device has nothing yet
            models[name] = msgspec.structs.replace(models.get(name, messages.Running()), waiting=waiting)
        return models

    def _running(self, model: str, state: UpdateRecord) -> messages.Running:
        said: dict[str, Any] = {"state": state.name.value, "waiting": state.waits, "highest": state.highest}
        said["behaviour"] = dict(self._inference.behaviour(model))
        said["shadow"] = self._inference.shadowed(model)
        active = state.active
        if active is None:
            return messages.Running(**said)
        return messages.Running(
            digest=active.digest,
            version=active.version,
            since=active.since,
            release=active.release,
            provider=self._inference.provider(model),
            **said,
        )
