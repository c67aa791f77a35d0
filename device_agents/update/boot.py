"""One model at the start of the agent: what the rules of the start make of its journalled state.

Nothing is journalled and no effect runs here: `runner.Updater` does that later, when the control plane is there.
"""

from __future__ import annotations

from device_agents.deployment import Booted, Damaged, Installed, UpdateEvent, UpdateRecord
from device_agents.update.machine import UpdateMachine, UpdateStep
from edgekit.protocols import Clock


class Boot:
    """The start of one model.

    Args:
        state: Its journalled state.
        machine: The rules.
        clock: Monotonic time for deadlines, and wall time for events.

    Attributes:
        before, state: The journalled state, and the state that follows from the start.
        step: The event and the step that led to `state`; None before `begin`.
    """

    def __init__(self, state: UpdateRecord, machine: UpdateMachine, clock: Clock) -> None:
        self.before = self.state = state
        self.step: tuple[UpdateEvent, UpdateStep] | None = None
        self._machine, self._clock = machine, clock

    def begin(self, ended: str = "cut") -> Installed | None:
        """Resume from the journalled state.

        Args:
            ended: How the last run of the agent ended; see Booted.

        Returns:
            The bundle that must answer now; None for none.
        """
        self._take(Booted(ended=ended, at=self._clock.wall()))
        return self.state.active

    def damaged(self, event: Damaged) -> Installed | None:
        """The bundle that `begin` returned is damaged; returns the bundle that must answer instead."""
        self._take(event)
        return self.state.known_good

    def _take(self, event: UpdateEvent) -> None:
        step = self._machine.step(self.state, event, self._clock.monotonic())
        self.state, self.step = step.state, (event, step)
