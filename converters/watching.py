"""What whoever started a conversion may watch of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

Tell = Callable[[int, int, float | None], None]
"""Takes how many of how many parts of a step are done, and the seconds that the rest takes, None where nobody knows."""

Step = Callable[[str], contextlib.AbstractContextManager[Tell | None]]
"""Takes the name of a step; its context lasts as long as the step, and may give what is told of its parts."""


def silent(label: str) -> contextlib.AbstractContextManager[None]:
    """A Step that says nothing."""
    return contextlib.nullcontext()


def untold(done: int, total: int, left: float | None) -> None:
    """A Tell that says nothing."""
