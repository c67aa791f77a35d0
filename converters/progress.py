"""What whoever started a conversion may watch of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from converters.quality.selection import Measured
from edgekit.bundle.targets import TargetProfile

Tell = Callable[[int, int, float | None], None]
"""Takes how many of how many parts of a step are done, and the seconds that the rest takes, None where nobody knows."""

Step = Callable[[str], contextlib.AbstractContextManager[Tell | None]]
"""Takes the name of a step; its context lasts as long as the step, and may give what is told of its parts."""


def silent(label: str) -> contextlib.AbstractContextManager[None]:
    """A Step that says nothing."""
    return contextlib.nullcontext()


def untold(done: int, total: int, left: float | None) -> None:
    """A Tell that says nothing."""


class Watch(msgspec.Struct, frozen=True):
    """What is called while a conversion runs; all of it does nothing by default.

    Attributes:
        step: With the name of each step.
        found: With each candidate of each target as soon as it is there.
        written: With the folder of each bundle that was written.
        note: With what a person should know and no result says.
    """

    step: Step = silent
    found: Callable[[TargetProfile, Measured], None] = lambda profile, measured: None
    written: Callable[[Path], None] = lambda folder: None
    note: Callable[[str], None] = lambda text: None
