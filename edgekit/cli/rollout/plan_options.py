"""Options of a rollout's plan, for commands that start or change one: waves, thresholds, gates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from edgekit.cli.common.console import usage
from edgekit.cli.common.numbers import SHARE, Number, Seconds, Whole
from edgekit.cli.common.selection import parse_cohort
from edgekit.rollout.allowance import MAX_PER_HOUR, MAX_RAMP
from edgekit.rollout.gates import parse_gate
from edgekit.rollout.plan import (
    AT_START,
    BEFORE_WAVES,
    COHORT,
    MAX_SHADOW,
    PAUSE,
    PREVIOUS,
    RETURN,
    RolloutPlan,
    parse_waves,
)

DEFAULTS = RolloutPlan()
_OPTIONS = (
    click.option(
        "--waves",
        default=",".join(wave.text for wave in DEFAULTS.waves),
        show_default=True,
        help="Size of each wave, as a share or a number of devices, counted from the start; the last is 100%. "
        "The first ones may be filters: 'label.ring == 0, name in (pi-4, pi-5), 50%, 100%'.",
    ),
    click.option(
        "--per-hour",
        type=Number(min=0, max=MAX_PER_HOUR),
        default=DEFAULTS.per_hour,
        show_default=True,
        metavar="DEVICES",
        help="Assign the version to at most this many devices within an hour, a tenth of them at once; 0 for no limit.",
    ),
    click.option(
        "--ramp",
        type=Number(min=1, max=MAX_RAMP),
        default=DEFAULTS.ramp,
        show_default=True,
        metavar="FACTOR",
        help="Multiply --per-hour by this with each wave.",
    ),
    click.option(
        "--error-threshold",
        type=SHARE,
        default=DEFAULTS.error_threshold,
        metavar="SHARE",
        show_default=True,
        help="Pause when more than this share of the assigned devices failed.",
    ),
    click.option(
        "--min-failures",
        type=Whole(min=1),
        default=DEFAULTS.min_failures,
        metavar="DEVICES",
        show_default=True,
        help="Do not pause before this many devices failed.",
    ),
    click.option(
        "--success-threshold",
        type=SHARE,
        default=DEFAULTS.success_threshold,
        metavar="SHARE",
        show_default=True,
        help="Start the next wave when this share of the current wave succeeded.",
    ),
    click.option(
        "--device-deadline",
        type=Seconds(),
        default=DEFAULTS.device_deadline_seconds,
        show_default=True,
        metavar="SECONDS",
        help="A device has failed when it reports neither success nor failure for this long; also as 15m, 2h or 7d.",
    ),
    click.option(
        "--max-wait",
        type=Seconds(),
        default=DEFAULTS.max_wait_seconds,
        show_default=True,
        metavar="SECONDS",
        help="A device that waits on purpose (quiet hours, a metered link) for longer than this is not reached, which "
        "is neither a success nor a failure.",
    ),
    click.option(
        "--canaries",
        metavar="FILTER",
        default="",
        help="These devices come first, as a wave of their own: 'label.ring == 0' or 'name in (pi-1, pi-2)'.",
    ),
    click.option(
        "--approval",
        type=click.Choice([AT_START, BEFORE_WAVES]),
        help="Wait for `edgekit rollout approve` before the first wave, or before each one.",
    ),
    click.option(
        "--consent", is_flag=True, help="Each device waits until its user agrees (edgekit-agent agree MODEL)."
    ),
    click.option(
        "--window",
        metavar="HH:MM-HH:MM",
        default="",
        help="Devices change in this time of day only, in their own time zones, for example 22:00-05:00.",
    ),
    click.option(
        "--gate",
        "gates",
        multiple=True,
        metavar="GATE",
        help="Stop when the new model behaves worse than the previous one of the same devices: outcome, errors, "
        "fallback or 'latency 50ms'; with a margin 'outcome drop <= 0.02'. agreement:0.95 stops, before any device "
        "activates it, when fewer answers of --shadow agree (may be repeated).",
    ),
    click.option(
        "--control",
        type=click.Choice([PREVIOUS, COHORT]),
        default=DEFAULTS.control,
        show_default=True,
        help="What gates compare with: each device's previous model, or also the devices of later waves, which run the "
        "old version in the same hours. Then a change of the whole fleet stops no rollout, and hides no worse model.",
    ),
    click.option(
        "--shadow",
        type=Whole(min=0, max=MAX_SHADOW),
        default=DEFAULTS.shadow,
        show_default=True,
        metavar="INPUTS",
        help="Each device first runs the new model beside its active one, which answers, on this many inputs.",
    ),
    click.option(
        "--shadow-for",
        type=Seconds(min=1),
        default=DEFAULTS.shadow_seconds,
        show_default=True,
        metavar="SECONDS",
        help="Longest time of that comparison on a device; also as 15m, 2h or 7d.",
    ),
    click.option(
        "--soak",
        type=Seconds(min=0),
        default=DEFAULTS.soak_seconds,
        show_default=True,
        metavar="SECONDS",
        help="Watch each wave for so long after its devices have succeeded; gates need this time.",
    ),
    click.option(
        "--on-failure",
        type=click.Choice([PAUSE, RETURN]),
        default=DEFAULTS.on_failure,
        show_default=True,
        help="What failures and gates do: pause the rollout, or end it and return all devices to what they had before.",
    ),
)


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets their values as one parameter `plan`."""

    @functools.wraps(function)
    def with_plan(**values: Any) -> Any:
        with usage():
            plan = RolloutPlan(
                waves=parse_waves(values.pop("waves")),
                per_hour=values.pop("per_hour"),
                ramp=values.pop("ramp"),
                success_threshold=values.pop("success_threshold"),
                error_threshold=values.pop("error_threshold"),
                min_failures=values.pop("min_failures"),
                device_deadline_seconds=values.pop("device_deadline"),
                max_wait_seconds=values.pop("max_wait"),
                gates=tuple(parse_gate(gate) for gate in values.pop("gates")),
                soak_seconds=values.pop("soak"),
                on_failure=values.pop("on_failure"),
                control=values.pop("control"),
                shadow=values.pop("shadow"),
                shadow_seconds=values.pop("shadow_for"),
                consent=values.pop("consent"),
                window=values.pop("window"),
                approval=values.pop("approval") or "",
                canaries=parse_cohort((), (), text) if (text := values.pop("canaries")) else None,
            )
        return function(plan=plan, **values)

    for option in reversed(_OPTIONS):
        with_plan = option(with_plan)
    return with_plan
