"""Geometry of the report's chart: size on a logarithmic axis against drop, with labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from converters.report.report import CandidateReport, Report
from converters.words import figure_text, size_text

WIDTH, HEIGHT = 760.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 20.0, 26.0, 48.0
CHARACTER, LINE = 6.8, 14.0  # size of a letter of a label, in units of the drawing; wide letters included
LONGEST_LABEL = 40  # letters
HIGHEST = 4.0  # drops beyond this multiple of the limit are drawn at the upper edge
MARKER, CHOSEN_MARKER = 5.0, 8.0  # radii
_STEPS = ((1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_NARROW_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # differences of ticks where the sizes are near each other
_FEWEST_TICKS, _MOST_TICKS = 3, 8
_TICK_GAP = 10.0  # between the texts of two ticks


class Box(msgspec.Struct, frozen=True):
    """A rectangle, from its left upper corner to its right lower one."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: Box) -> bool:
        """True if the two share some area."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


class Label(msgspec.Struct, frozen=True):
    """A text with the left end of its baseline, and the area that it takes.

    `leader` is the end of a line from the point to a label that is far from it; None for a label beside its point.
    """

    text: str
    x: float
    y: float
    box: Box
    leader: tuple[float, float] | None = None


class Point(msgspec.Struct, frozen=True):
    """One candidate: its number in the table, its place, the end of its bound, and its label if one has space.

    `beyond` is True where its drop is above the drawing; then it is drawn at the upper edge.
    """

    number: int
    id: str
    name: str
    verdict: str
    x: float
    y: float
    top: float
    radius: float
    beyond: bool
    facts: tuple[str, ...]
    label: Label | None = None
    tip: Box = Box(0.0, 0.0, 0.0, 0.0)


class Tick(msgspec.Struct, frozen=True):
    """A mark on an axis."""

    at: float
    text: str


class Chart(msgspec.Struct, frozen=True):
    """Everything that the page draws, in units of a `WIDTH` by `HEIGHT` drawing."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit: float
    limit_text: str
    line: str


class _Scale:
    """Sizes and drops as coordinates."""

    def __init__(self, rows: Sequence[CandidateReport], limit: float) -> None:
        sizes = [c.bytes for c in rows]
        self.least, self.most = min(sizes) / 1.12, max(sizes) * 1.12
        drops = [c.drop for c in rows if c.drop is not None]
        ends = [end for drop in drops for end in (drop.value, drop.upper) if end <= HIGHEST * limit]
        self.low, self.high = min([0.0, *(d.value for d in drops)]), max([1.25 * limit, *ends])
        self.low -= 0.10 * (self.high - self.low)
        self.high += 0.06 * (self.high - self.low)

    def x(self, size: float) -> float:
        share = math.log(size / self.least) / math.log(self.most / self.least)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, drop: float) -> float:
        share = (self.high - min(drop, self.high)) / (self.high - self.low)
        return round(TOP + share * (HEIGHT - TOP - BOTTOM), 1)


def chart_of(report: Report, names: Mapping[str, str]) -> Chart | None:
    """The chart of the candidates whose drop is known; None if there are none.

    Args:
        report: The report.
        names: Title of each candidate, by id.
    """
    numbered = [(n, c) for n, c in enumerate(report.candidates, 1) if c.drop is not None and c.bytes > 0]
    limit = report.budget.max_drop
    if not numbered or limit <= 0.0:
        return None
    scale = _Scale([c for _, c in numbered], limit)
    points = [_point(n, c, names[c.id], scale, report) for n, c in numbered]
    chosen_first = sorted(points, key=lambda p: (p.verdict != "chosen", p.verdict != "fits", p.number))
    frontier = _frontier(report)
    corners = sorted((p.x, p.y) for p in points if p.id in frontier and not p.beyond)
    return Chart(
        points=tuple(sorted(_labelled(chosen_first), key=lambda p: (p.verdict == "chosen", p.number))),
        x_ticks=_apart([Tick(scale.x(size), size_text(round(size))) for size in size_ticks(scale.least, scale.most)]),
        y_ticks=tuple(Tick(scale.y(drop), figure_text(drop)) for drop in _drop_ticks(scale, limit)),
        limit=scale.y(limit),
        limit_text=f"limit {figure_text(limit)}",
        line=" ".join(f"{across},{down}" for across, down in corners),
    )


def size_ticks(least: float, most: float) -> list[float]:
    """Round sizes in bytes from `least` to `most`, three to eight where possible."""
    unit = 1024.0**2 if least >= 1024.0**2 else 1024.0 if most >= 1024.0 else 1.0
    ticks: list[float] = []
    for steps in _STEPS:
        first, last = math.floor(math.log10(least / unit)), math.ceil(math.log10(most / unit))
        ticks = [m * 10.0**k * unit for k in range(first, last + 1) for m in steps]
        ticks = [size for size in ticks if least <= size <= most and (size >= unit or unit == 1024.0**2)]
        if len(ticks) >= _FEWEST_TICKS:
            stride = -(-len(ticks) // _MOST_TICKS)
            return ticks[::stride]
    about = (most - least) / _MOST_TICKS / unit
    power = 10.0 ** math.floor(math.log10(about))
    step = unit * power * next(one for one in _NARROW_STEPS if one * power >= about)
    return [step * n for n in range(math.ceil(least / step), math.floor(most / step) + 1)]


def _apart(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """The ticks from left to right, without those whose text would meet the one before it."""
    kept: list[Tick] = []
    for tick in ticks:
        width = CHARACTER * (len(tick.text) + len(kept[-1].text)) / 2.0 if kept else 0.0
        if not kept or tick.at - kept[-1].at >= width + _TICK_GAP:
            kept.append(tick)
    return tuple(kept)


def _drop_ticks(scale: _Scale, limit: float) -> list[float]:
    """0 and round multiples of the limit, without the limit itself, which has a line of its own."""
    step = limit / 2.0 if scale.high < 2.5 * limit else limit
    count = int(scale.high / step)
    return [step * n for n in range(math.ceil(scale.low / step), count + 1) if abs(step * n - limit) > step / 4.0]


def _point(number: int, candidate: CandidateReport, name: str, scale: _Scale, report: Report) -> Point:
    drop = candidate.drop
    assert drop is not None  # others are not drawn
    facts = (
        f"{size_text(candidate.bytes)}, cost {figure_text(candidate.cost.value)}",
        f"drop in {report.metric} {figure_text(drop.value)}, at most {figure_text(drop.upper)}",
        candidate.verdict,
    )
    x, y = scale.x(candidate.bytes), scale.y(drop.value)
    width = CHARACTER * max(len(name), *(len(fact) for fact in facts)) + 16.0
    left = min(max(x - width / 2.0, 2.0), max(WIDTH - width - 2.0, 2.0))
    height = LINE * (1 + len(facts)) + 14.0
    above = y - height - 12.0
    top = above if above > 0.0 else y + 14.0
    return Point(
        number=number, id=candidate.id, name=name, verdict=candidate.verdict, x=x, y=y, top=scale.y(drop.upper),
        radius=CHOSEN_MARKER if candidate.verdict == "chosen" else MARKER, beyond=drop.value > scale.high, facts=facts,
        tip=Box(round(left, 1), round(top, 1), round(left + width, 1), round(top + height, 1)),
    )  # fmt: skip


def _labelled(points: Sequence[Point]) -> Iterator[Point]:
    """The points in the given order with labels that meet no marker, no earlier label, and if possible no bound."""
    taken = [Box(p.x - p.radius - 1, p.y - p.radius - 1, p.x + p.radius + 1, p.y + p.radius + 1) for p in points]
    bounds = [Box(p.x - 1.5, p.top, p.x + 1.5, p.y) for p in points]
    for point in points:
        text = point.name if point.verdict == "chosen" else str(point.number)
        if len(text) > LONGEST_LABEL:
            text = text[: LONGEST_LABEL - 1].rstrip(" ,") + "…"
        label = next((one for one in _places(point, text) if _free(one.box, [*taken, *bounds])), None)
        if label is None and point.verdict == "chosen":  # its label may cross bounds
            label = next((one for one in _places(point, text) if _free(one.box, taken)), None)
        if label is not None:
            taken.append(label.box)
        yield msgspec.structs.replace(point, label=label)


def _places(point: Point, text: str) -> Iterator[Label]:
    """Places for a label: beside the point, and for the chosen one also further away, with a line to it."""
    width, gap = CHARACTER * len(text), point.radius + 4.0
    beside = (
        (gap, 0.0), (-gap - width, 0.0), (-width / 2, gap + LINE / 2), (-width / 2, -gap - LINE / 2),
        (gap, gap), (gap, -gap), (-gap - width, gap), (-gap - width, -gap),
    )  # fmt: skip
    for across, down in beside:
        yield _label(point, text, across, down)
    if point.verdict == "chosen":
        for far in (24.0, 48.0, 72.0, 100.0, 140.0, 180.0):
            left = -far - width
            for across, down in ((far, -far), (left, -far), (far, far), (left, far), (-width / 2, -far)):
                label = _label(point, text, across, down)
                end = (label.box.x0 if across > 0 else label.box.x1 if across + width < 0 else point.x, point.y + down)
                yield msgspec.structs.replace(label, leader=(round(end[0], 1), round(end[1], 1)))


def _label(point: Point, text: str, across: float, down: float) -> Label:
    x, middle = point.x + across, point.y + down
    box = Box(x - 2.0, middle - LINE / 2, x + CHARACTER * len(text) + 2.0, middle + LINE / 2)
    return Label(text, round(x, 1), round(middle + 4.0, 1), box)


def _free(box: Box, taken: Sequence[Box]) -> bool:
    inside = box.x0 >= LEFT and box.x1 <= WIDTH - 4.0 and box.y0 >= 4.0 and box.y1 <= HEIGHT - BOTTOM + 2.0
    return inside and not any(box.meets(other) for other in taken)


def _frontier(report: Report) -> set[str]:
    """Ids of the candidates to which no other is both smaller and lower in drop."""
    best, frontier = float("inf"), set()
    for _, drop, name in sorted((c.bytes, c.drop.value, c.id) for c in report.candidates if c.drop and c.bytes):
        if drop < best:
            best = drop
            frontier.add(name)
    return frontier
