"""Events of the start, which happen before anything is there that could send them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class SendsEvents(Protocol):
    """Sends events of the device; `control.events.EventSender` implements it."""

    def send(self, kind: str, model: str, error: str, message: str, detail: dict[str, Any] | None = None) -> None:
        """Send one event; `model` and `error` may be empty."""
        ...

    def send_load(self, kind: str, model: str, seconds: float) -> None:
        """Send an event about a long load."""
        ...

    def send_budget(self, kind: str, model: str, message: str, detail: dict[str, Any]) -> None:
        """Send an event about a spent daily budget of the cloud tier."""
        ...

    def send_unproven(self, model: str, message: str, detail: dict[str, Any]) -> None:
        """Send an event about a bundle on a version of its runtime without good evidence."""
        ...


class HeldEvents:
    """Keeps events until `pass_on`, in their order; from then on it passes each one on at once."""

    def __init__(self) -> None:
        self._sender: SendsEvents | None = None
        self._held: list[Callable[[SendsEvents], None]] = []

    def pass_on(self, sender: SendsEvents) -> None:
        """Send what was kept, and send the following events at once."""
        self._sender = sender
        while self._held:
            self._held.pop(0)(sender)

    def send(self, kind: str, model: str, error: str, message: str, detail: dict[str, Any] | None = None) -> None:
        """As SendsEvents."""
        self._give(lambda sender: sender.send(kind, model, error, message, detail))

    def send_load(self, kind: str, model: str, seconds: float) -> None:
        """As SendsEvents."""
        self._give(lambda sender: sender.send_load(kind, model, seconds))

    def send_budget(self, kind: str, model: str, message: str, detail: dict[str, Any]) -> None:
        """As SendsEvents."""
        self._give(lambda sender: sender.send_budget(kind, model, message, detail))

    def send_unproven(self, model: str, message: str, detail: dict[str, Any]) -> None:
        """As SendsEvents."""
        self._give(lambda sender: sender.send_unproven(model, message, detail))

    def _give(self, give: Callable[[SendsEvents], None]) -> None:
        if self._sender is None:
            self._held.append(give)
        else:
            give(self._sender)
