"""What `edgekit-agent check` concludes from what it was given; touches nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from edgekit.errors import SettingsError, UnavailableError

CLOCK_SLACK_SECONDS = 24 * 3600.0
_FORMAT = "%Y-%m-%d %H:%M:%S UTC"


def judge_clock(now: float, traces: Mapping[str, float]) -> str:
    """What the clock says; boards without a battery start in the past, where nothing that was signed is valid yet.

    Args:
        now: Of the wall clock, in seconds since 1970.
        traces: What is known to have been, and when.

    Raises:
        UnavailableError: the clock is before one of them.
    """
    says = time.strftime(_FORMAT, time.gmtime(now))
    for what, at in sorted(traces.items(), key=lambda trace: -trace[1]):
        if now < at - CLOCK_SLACK_SECONDS:
            raise UnavailableError(
                f"the clock says {says}, but {what} is of {time.strftime(_FORMAT, time.gmtime(at))}.",
                advice="No date of a signature or certificate can be judged: let the clock be set, see timedatectl.",
            )
    return says


def judge_providers(present: Sequence[str], wanted: Sequence[str], *, required: bool) -> str:
    """Which of ONNX Runtime's execution providers are there, and which are missing.

    Args:
        present: What the installed ONNX Runtime has; none where it is not installed.
        wanted: What the settings name.
        required: Whether a missing one is an error.

    Raises:
        SettingsError: a required one is missing.
    """
    missing = [name for name in wanted if name not in present]
    has = ", ".join(present) or "none, for ONNX Runtime is not installed"
    if missing and required:
        raise SettingsError(
            f"{', '.join(missing)} cannot be had; there is {has}.",
            advice="Install the ONNX Runtime that has it, for GPUs edgekit[onnx-gpu], or take it out of agent.toml.",
        )
    return f"{has}; without {', '.join(missing)}, which is asked for" if missing else has
