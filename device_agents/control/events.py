"""Events of the device: what the agent notifies the controller of, as soon as there is a broker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from device_agents.control.crash_events import Crashed
from device_agents.control.link import ControlLink
from device_agents.deployment import Shadowed, Uninstalled, UpdateEvent, UpdateRecord, UpdateState
from edgekit.mqtt import messages
from edgekit.protocols import Clock
from edgekit.serving.models.memory_growth import Grown, growth_text

log = logging.getLogger(__name__)


class EventSender:
    """Makes the events of one device and gives them to the link.

    Args:
        device: Name of the device.
        link: Sends them.
        clock: Wall time.
        states: Gives the update state of each model.
    """

    def __init__(
        self, device: str, link: ControlLink, clock: Clock, states: Callable[[], Mapping[str, UpdateRecord]]
    ) -> None:
        self._device, self._link, self._clock, self._states = device, link, clock, states

    def send(self, kind: str, model: str, error: str, message: str, detail: dict[str, Any] | None = None) -> None:
        """Send one event; `model` and `error` may be empty."""
        self._link.event(messages.Event(self._device, kind, self._clock.wall(), model, error, message, detail or {}))

    def send_step(self, model: str, before: UpdateRecord, after: UpdateRecord, event: UpdateEvent) -> None:
        """Send the outcome or the delay that a step of an update brought, and report a changed state."""
        self._link.settling(after.name is UpdateState.CLEANING)
        if after.outcome is not None and after.outcome != before.outcome:
            outcome = after.outcome
            detail = {"version": outcome.version, "digest": outcome.deployment}
            kind = f"deployment-{outcome.result}"
            # With the outcome's time: the controller recognizes the event when a report has told it before.
            self._link.event(
                messages.Event(self._device, kind, outcome.at, model, outcome.error, outcome.message, detail)
            )
        if after.note and after.note != before.note:
            error, _, message = after.note.partition(": ")
            self.send("deployment-delayed", model, error, message)
        if isinstance(event, Uninstalled):
            version = before.active.version if before.active else ""
            self.send("uninstalled", model, "", f"{version or 'nothing'} ran here before", {"version": version})
        if isinstance(event, Shadowed) or _matters(before) != _matters(after):
            self._link.changed()
        elif after != before:
            self._link.changed_a_step()

    def send_load(self, kind: str, model: str, seconds: float) -> None:
        """Send an event about a long load, such as the building of a TensorRT engine."""
        self.send(kind, model, "", f"{seconds:.0f} s", {"seconds": round(seconds, 1)})

    def send_crash(self, crashed: Crashed) -> None:
        """Send an event about crashes of a model's process."""
        state = self._states().get(crashed.model)
        version = state.active.version if state is not None and state.active is not None else ""
        detail = {"version": version, "crashes": crashed.crashes, "total": crashed.total}
        message = f"the process of {version or 'the model'} crashed: {crashed.crashes}, since the start {crashed.total}"
        self.send("model-crashed", crashed.model, "WorkerCrashedError", message, detail)

    def send_certificate(self, kind: str, model: str, message: str, detail: dict[str, Any]) -> None:
        """Send an event about an offload certificate that is void, or refuted in the field."""
        self.send(kind, model, "", message, detail)

    def send_budget(self, kind: str, model: str, message: str, detail: dict[str, Any]) -> None:
        """Send an event about a spent daily budget of the cloud tier; `model` is empty for that of all models."""
        self.send(kind, model, "", message, detail)

    def send_drift(self, kind: str, model: str, error: str, message: str, detail: dict[str, Any]) -> None:
        """Send an event about inputs or answers that begin or cease to differ; `error` is the subject that begins."""
        self.send(kind, model, error, message, detail)

    def send_unproven(self, model: str, message: str, detail: dict[str, Any]) -> None:
        """Send an event about a bundle on a version of its runtime that it has no good evidence for."""
        self.send("runtime-unproven", model, "", message, detail)

    def send_growth(self, grown: Grown) -> None:
        """Send an event about a model, or the agent, that holds far more memory than after loading."""
        message = growth_text(grown)
        log.warning("%s", message)
        kind = "model-grown" if grown.model else "agent-grown"
        self.send(kind, grown.model, "", message, {"bytes": grown.bytes, "loaded_bytes": grown.loaded_bytes})


def _matters(state: UpdateRecord) -> tuple[object, ...]:
    """The parts of an update that the controller acts on: its outcome, what runs, and why it waits."""
    return state.outcome, state.active, state.waits, state.is_gone
