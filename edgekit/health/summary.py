"""Pure: what the telemetry of some hours says, as numbers for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from edgekit.sketches.signals import AGENT, LATENCY, ROUTE, ROUTES, SCORE, TEMPERATURE, latency_ms, parse_signal
from edgekit.sketches.sketch import Sketch


class BundleSummary(msgspec.Struct, frozen=True):
    """How one bundle served on one device.

    Attributes:
        model, digest: The model, and the first characters of the bundle's digest.
        requests: Requests, failed ones included.
        routes: Shares of the requests by route: ``local``, ``cloud``, ``degraded``, ``error``.
        p50_ms, p95_ms: Quantiles of the time from request to answer; None without answers.
        score: Median of the local answers' scores; None where there are none.
    """

    model: str
    digest: str
    requests: int
    routes: dict[str, float]
    p50_ms: float | None = None
    p95_ms: float | None = None
    score: float | None = None


class Summary(msgspec.Struct, frozen=True):
    """The activity of a device in some hours.

    Attributes:
        hours: Hours with telemetry.
        bundles: By model and digest.
        temperature_celsius: Median and highest temperature; None where unknown.
    """

    hours: int
    bundles: list[BundleSummary]
    temperature_celsius: tuple[float, float] | None = None


def summarise(hours: Iterable[Mapping[str, Sketch]]) -> Summary:
    """The summary of the sketches of some hours."""
    merged: dict[str, Sketch] = {}
    count = 0
    for sketches in hours:
        count += 1
        for key, sketch in sketches.items():
            merged[key] = merged[key].merged(sketch) if key in merged else sketch
    bundles: dict[tuple[str, str], dict[str, Sketch]] = {}
    for key, sketch in merged.items():
        signal = parse_signal(key)
        if signal is not None:
            bundles.setdefault((signal.model, signal.digest), {})[signal.name] = sketch
    device = bundles.pop((AGENT, ""), {})
    heat = device.get(TEMPERATURE)
    found = [_bundle(model, digest, signals) for (model, digest), signals in sorted(bundles.items())]
    return Summary(count, found, (heat.quantile(0.5), heat.maximum) if heat else None)


def _bundle(model: str, digest: str, signals: Mapping[str, Sketch]) -> BundleSummary:
    routes, latency, score = (signals.get(name) for name in (ROUTE, LATENCY, SCORE))
    bins = routes.bins(0) if routes else {}
    total = routes.total if routes else 0
    return BundleSummary(
        model,
        digest,
        total,
        {name: bins.get(index, 0) / total for index, name in enumerate(ROUTES)} if total else {},
        latency_ms(latency.quantile(0.5)) if latency else None,
        latency_ms(latency.quantile(0.95)) if latency else None,
        score.quantile(0.5) if score else None,
    )
