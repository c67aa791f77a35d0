"""Rules of `edgekit-agent check`: they judge given values and read nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from edgekit.errors import SettingsError, UnavailableError

CLOCK_SLACK_SECONDS = 24 * 3600.0
_FORMAT = "%Y-%m-%d %H:%M:%S UTC"


def judge_clock(now: float, traces: Mapping[str, float]) -> str:
    """Check the clock; a board without a battery starts in the past, where certificates are not valid yet.

    Args:
        now: Wall clock, seconds since 1970.
        traces: Events that have happened, such as the writing of a file, with their times.

    Returns:
        The time as text.

    Raises:
        UnavailableError: the clock is more than a day before one of the events.
    """
    text = time.strftime(_FORMAT, time.gmtime(now))
    for event, at in sorted(traces.items(), key=lambda trace: -trace[1]):
        if now < at - CLOCK_SLACK_SECONDS:
            raise UnavailableError(
                f"the clock says {text}, but {event} is dated {time.strftime(_FORMAT, time.gmtime(at))}.",
                advice="With a wrong clock no signature or certificate can be checked: set the clock, see timedatectl.",
            )
    return text


def judge_providers(present: Sequence[str], wanted: Sequence[str], *, required: bool) -> str:
    """Check ONNX Runtime's execution providers.

    Args:
        present: Providers of the installed ONNX Runtime; empty when it is not installed.
        wanted: Providers in the settings.
        required: Whether a missing provider is an error.

    Returns:
        The present and the missing providers, as text.

    Raises:
        SettingsError: a required provider is missing.
    """
    missing = [name for name in wanted if name not in present]
    has = ", ".join(present) or "none, because ONNX Runtime is not installed"
    if missing and required:
        raise SettingsError(
            f"missing providers: {', '.join(missing)}; present: {has}.",
            advice="Install an ONNX Runtime with it (for GPUs: edgekit[onnx-gpu]), or remove it from agent.toml.",
        )
    return f"{has}; missing: {', '.join(missing)}" if missing else has
