"""Progress callbacks of a conversion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from converters.quality.measured import Measured
from converters.report.report import Report
from edgekit.bundle.targets import TargetProfile

ProgressCallback = Callable[[int, int, float | None], None]
"""Takes the number of finished parts of a step, the number of all parts, and the remaining seconds or None."""

StepCallback = Callable[[str], contextlib.AbstractContextManager[ProgressCallback | None]]
"""Takes the name of a step. Returns a context for the duration of the step, which may give a ProgressCallback."""


def no_step(label: str) -> contextlib.AbstractContextManager[None]:
    """A StepCallback that does nothing."""
    return contextlib.nullcontext()


def no_progress(done: int, total: int, left: float | None) -> None:
    """A ProgressCallback that does nothing."""


class ConversionCallbacks(msgspec.Struct, frozen=True):
    """Functions that are called while a conversion runs. By default they do nothing.

    Attributes:
        step: Called with the name of each step.
        found: Called with each candidate of each target as soon as it is measured.
        written: Called with the folder of each bundle that was written.
        reported: Called with the report of each bundle that was written, in the order of the targets.
        note: Called with messages for the user that no report contains.
    """

    step: StepCallback = no_step
    found: Callable[[TargetProfile, Measured], None] = lambda profile, measured: None
    written: Callable[[Path], None] = lambda folder: None
    reported: Callable[[Report], None] = lambda report: None
    note: Callable[[str], None] = lambda text: None
