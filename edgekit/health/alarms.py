"""Pure rules of alarms: which hours of a device's telemetry differ from how the same bundle began there.

The first BASELINE_HOURS hours with requests of a bundle on a device are its baseline, with which each later hour is
compared. An alarm needs two things: a difference that chance alone exceeds in at most LEVEL of the hours, and one that
matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from edgekit.health.comparison import distance, share_bounds
from edgekit.sketches.signals import (
    AGENT,
    CLASS,
    INPUT,
    LATENCY,
    ROUTE,
    ROUTES,
    SCORE,
    TEMPERATURE,
    latency_ms,
    parse_signal,
)
from edgekit.sketches.sketch import Sketch

BASELINE_HOURS = 24
LEVEL = 1e-6  # of false alarms in an hour, for one signal of one bundle of one device
MIN_SAMPLES = 50
SLOWER = 1.5  # times the baseline's 95th percentile
SHIFT = 0.15  # largest difference of the shares below a value
MORE_ERRORS, MORE_AWAY = 0.01, 0.10  # shares of requests
HOT_CELSIUS = 80.0
MAX_BUNDLES = 64  # baselines kept for a device, those that served last


class Limits(msgspec.Struct, frozen=True):
    """The least differences that matter, and the level of false alarms; the defaults are the module's constants."""

    level: float = LEVEL
    slower: float = SLOWER
    shift: float = SHIFT
    more_errors: float = MORE_ERRORS
    more_away: float = MORE_AWAY


class Baseline(msgspec.Struct, frozen=True):
    """How one bundle began on a device.

    Attributes:
        hours: Hours that `sketches` contain, at most BASELINE_HOURS.
        sketches: By signal.
        last: Number of the last hour in which the bundle was seen.
    """

    hours: int
    sketches: dict[str, Sketch]
    last: int


class Finding(msgspec.Struct, frozen=True):
    """The judgement of one signal in one hour.

    Attributes:
        model: Name of the model; AGENT for the device itself.
        kind: ``latency``, ``score``, ``class``, ``input.NAME``, ``errors``, ``away`` or ``temperature``.
        alarm: Whether it is an alarm.
        message: What was found and what was expected.
    """

    model: str
    kind: str
    alarm: bool
    message: str


class Judgement(NamedTuple):
    """The judgement of an hour.

    Attributes:
        baselines: The baselines after it, by bundle.
        findings: One for each signal that could be judged.
        fresh: Models that run a bundle whose baseline is not complete: their alarms were about another one.
    """

    baselines: dict[str, Baseline]
    findings: list[Finding]
    fresh: set[str]


def judge_hour(
    baselines: Mapping[str, Baseline], hour: int, sketches: Mapping[str, Sketch], limits: Limits | None = None
) -> Judgement:
    """Judge one whole hour of a device.

    Args:
        baselines: By bundle.
        hour: Its number, rising.
        sketches: By their names in telemetry.
        limits: What matters.
    """
    limits = limits or Limits()
    by_bundle: dict[str, dict[str, Sketch]] = {}
    models: dict[str, str] = {}
    for key, sketch in sketches.items():
        signal = parse_signal(key)
        if signal is not None:
            by_bundle.setdefault(signal.bundle, {})[signal.name] = sketch
            models[signal.bundle] = signal.model
    after, fresh = dict(baselines), set[str]()
    findings: list[Finding] = []
    for bundle, found in by_bundle.items():
        model = models[bundle]
        if model == AGENT:
            findings += _judge_device(found)
            continue
        known = after.get(bundle, Baseline(0, {}, hour))
        if known.hours >= BASELINE_HOURS:
            findings += _judge_bundle(model, known.sketches, found, limits)
            after[bundle] = msgspec.structs.replace(known, last=hour)
        else:
            after[bundle] = Baseline(known.hours + 1, _merged(known.sketches, found), hour)
            fresh.add(model)
    newest = sorted(after, key=lambda name: -after[name].last)[:MAX_BUNDLES]
    return Judgement({name: after[name] for name in newest}, findings, fresh)


def _merged(one: Mapping[str, Sketch], other: Mapping[str, Sketch]) -> dict[str, Sketch]:
    both = dict(one)
    for name, sketch in other.items():
        both[name] = both[name].merged(sketch) if name in both else sketch
    return both


def _judge_device(found: Mapping[str, Sketch]) -> list[Finding]:
    """Heat is judged by a fixed limit: chance plays no part in it."""
    sketch = found.get(TEMPERATURE)
    if sketch is None:
        return []
    median = sketch.quantile(0.5)
    text = f"half of the hour was at {median:.0f} °C or more, the limit is {HOT_CELSIUS:.0f} °C"
    return [Finding(AGENT, TEMPERATURE, median >= HOT_CELSIUS, text)]


def _judge_bundle(model: str, before: Mapping[str, Sketch], now: Mapping[str, Sketch], limits: Limits) -> list[Finding]:
    findings = []
    for name, sketch in now.items():
        base = before.get(name)
        if base is None or min(base.samples, sketch.samples) < MIN_SAMPLES:
            continue
        if name == LATENCY:
            findings.append(_judge_latency(model, base, sketch, limits))
        elif name == ROUTE:
            findings += _judge_routes(model, base, sketch, limits)
        elif name in (SCORE, CLASS) or name.startswith(INPUT):
            findings.append(_judge_shift(model, name, base, sketch, limits))
    return findings


def _judge_latency(model: str, base: Sketch, sketch: Sketch, limits: Limits) -> Finding:
    found = distance(base, sketch, limits.level)
    before, now = (latency_ms(one.quantile(0.95)) for one in (base, sketch))
    alarm = found.rise > found.radius and now >= limits.slower * before
    return Finding(model, LATENCY, alarm, f"p95 was {now:.3g} ms, in the baseline {before:.3g} ms")


def _judge_shift(model: str, name: str, base: Sketch, sketch: Sketch, limits: Limits) -> Finding:
    found = distance(base, sketch, limits.level)
    alarm = found.largest > found.radius and found.largest >= limits.shift
    text = f"{name} moved by {found.largest:.0%} of {sketch.samples} samples, median {sketch.quantile(0.5):.3g}"
    return Finding(model, name, alarm, f"{text}, in the baseline {base.quantile(0.5):.3g}")


def _judge_routes(model: str, base: Sketch, sketch: Sketch, limits: Limits) -> list[Finding]:
    kinds = (("errors", ("error",), limits.more_errors), ("away", ("cloud", "degraded"), limits.more_away))
    findings = []
    for kind, routes, more in kinds:
        hits = [sum(one.bins(0).get(ROUTES.index(route), 0) for route in routes) for one in (base, sketch)]
        _, high = share_bounds(hits[0], base.total, limits.level)
        low, _ = share_bounds(hits[1], sketch.total, limits.level)
        before, now = hits[0] / base.total, hits[1] / sketch.total
        word = "failed" if kind == "errors" else "needed the cloud tier"
        text = f"{now:.2%} of {sketch.total} requests {word}, in the baseline {before:.2%}"
        findings.append(Finding(model, kind, low > high + more, text))
    return findings
