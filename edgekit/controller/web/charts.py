"""Charts of a device's hours as SVG paths: latency, local answers and temperature. Pure rules.

The server draws them, so that a page needs neither a script nor a style that its policy would refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgekit.health.summary import Summary

WIDTH, HEIGHT = 1000.0, 160.0
HOUR_SECONDS = 3600.0
MAX_CHARTS = 12  # a device that reports very many models fills no page


class Line(msgspec.Struct, frozen=True):
    """One line of a chart: its name with the last value, its style, and its path."""

    name: str
    kind: str
    path: str


class Chart(msgspec.Struct, frozen=True):
    """One chart.

    Attributes:
        title: What it shows, with the unit.
        lines: Its lines.
        top: The highest value of the axis as text; the lowest one is 0.
        begin, end: Wall clock seconds of its left and right ends.
    """

    title: str
    lines: list[Line]
    top: str
    begin: float
    end: float

    @property
    def label(self) -> str:
        """The chart in words, for those who do not see it."""
        return f"{self.title}: " + ", ".join(line.name for line in self.lines)


Points = list[tuple[float, float]]


def hour_charts(hours: Sequence[tuple[float, Summary]], begin: float, end: float) -> list[Chart]:
    """The charts of a device.

    Args:
        hours: Begin (wall clock seconds) and summary of each hour, the oldest first.
        begin, end: The ends of the time axis.
    """
    p50: dict[str, Points] = {}
    p95: dict[str, Points] = {}
    local: dict[str, Points] = {}
    heat: Points = []
    for at, summary in hours:
        for one in summary.bundles:
            name = f"{one.model} {one.digest}".strip()
            if one.p50_ms is not None and one.p95_ms is not None:
                p50.setdefault(name, []).append((at, one.p50_ms))
                p95.setdefault(name, []).append((at, one.p95_ms))
            if one.routes:
                local.setdefault(name, []).append((at, 100.0 * one.routes.get("local", 0.0)))
        if summary.temperature_celsius is not None:
            heat.append((at, summary.temperature_celsius[1]))
    charts = []
    for name in p95:
        series = {"95 % of answers within": p95[name], "half within": p50[name]}
        charts.append(_chart(f"Latency of {name}, ms", series, begin, end, "ms"))
    charts += [
        _chart(f"Answers of the device itself, {name}, %", {"local": points}, begin, end, "%", top=100.0)
        for name, points in local.items()
    ]
    if heat:
        charts.append(_chart("Highest temperature of each hour, °C", {"temperature": heat}, begin, end, "°C"))
    return charts[:MAX_CHARTS]


def _chart(title: str, series: Mapping[str, Points], begin: float, end: float, unit: str, *, top: float = 0.0) -> Chart:
    highest = top or max(value for points in series.values() for _, value in points) * 1.1 or 1.0
    lines = []
    for index, (name, points) in enumerate(series.items()):
        path = _path(points, begin, end, highest)
        lines.append(Line(f"{name} {points[-1][1]:.3g} {unit}", "dashed" if index else "solid", path))
    return Chart(title, lines, f"{highest:.3g}", begin, end)


def _path(points: Points, begin: float, end: float, highest: float) -> str:
    """Steps of an hour each; an hour without a value interrupts the line."""
    scale = WIDTH / max(1.0, end - begin)
    parts: list[str] = []
    last = float("-inf")
    for at, value in points:
        left, right = (max(0.0, min(WIDTH, (when - begin) * scale)) for when in (at, at + HOUR_SECONDS))
        y = HEIGHT * (1.0 - min(1.0, max(0.0, value / highest)))
        parts.append(f"{'L' if at == last else 'M'}{left:.1f} {y:.1f}H{right:.1f}")
        last = at + HOUR_SECONDS
    return "".join(parts)
