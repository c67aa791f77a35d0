"""The protocol through which the demo prints. `edgekit.cli` implements it, so the demo imports no command."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Printer(Protocol):
    """Prints the progress and the results of the demo."""

    def note(self, text: str) -> None:
        """Print one line of explanation."""

    def step(self, label: str) -> AbstractContextManager[Any]:
        """Print the label of a step when it begins, and its duration when it ends."""

    def print_table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a result as aligned columns."""
