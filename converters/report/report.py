"""Writes report.json and report.html: the candidates, their measurements, and the reason for the chosen one."""

from __future__ import annotations

from typing import Any

import jinja2
import msgspec

from converters.cost.overhead import FileFacts
from converters.quality.drop import Drop
from converters.quality.parity import Parity
from converters.quality.selection import Budget
from converters.report.pruning import Pruning
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import Recipe


class Constant(msgspec.Struct, frozen=True):
    """A constant: the operator that reads it, its type and shape, and its bytes in the file."""

    reader: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class ArtifactContents(msgspec.Struct, frozen=True):
    """Contents of an artifact.

    Attributes:
        operators: Number of operators of each kind, the most frequent first.
        constants: The largest constants, in order of size.
        smaller: Bytes of all other constants.
        rest: Bytes of the file that are not constants: graph, names, scales.
        pieces: Number of pieces of the graph that LiteRT's XNNPACK runs; None where it is not known.
        delegated: XNNPACK runs every layer with weights; built-in kernels run only steps such as a softmax.
    """

    operators: dict[str, int]
    constants: tuple[Constant, ...]
    smaller: int
    rest: int
    pieces: int | None = None
    delegated: bool = False


class Value(msgspec.Struct, frozen=True):
    """Value of a metric on `n` samples."""

    value: float
    n: int


class SourceReport(msgspec.Struct, frozen=True):
    """The model that was converted: its file name, digest and format."""

    path: str
    sha256: str
    format: str


class SplitReport(msgspec.Struct, frozen=True):
    """Number of rows in each split of the data, and the digest of all rows."""

    digest: str
    calibration: int
    choice: int
    proof: int


class FloatReport(msgspec.Struct, frozen=True):
    """The canonical float model: its size and its quality on the proof split."""

    bytes: int
    quality: Value | None


class CandidateReport(msgspec.Struct, frozen=True):
    """One candidate; `drop` is on the proof split. `verdict` is a verdict of `converters.quality.selection`."""

    id: str
    recipe: Recipe
    bytes: int
    quality: Value | None
    drop: Drop | None
    cost: Cost
    verdict: str
    reason: str


class LayerReport(msgspec.Struct, frozen=True):
    """Sensitivity of one layer: divergence from the float model where only this layer has 8 or 4 bits."""

    name: str
    operator: str
    int8: float
    int4: float | None


class RouteReport(msgspec.Struct, frozen=True):
    """Result of the direct route (see `converters.candidates.direct_route`), with facts of both float files.

    Attributes:
        taken: Recipes of the direct route are candidates.
        reason: Why they are, or why not.
        lowered, direct: Facts of the files; None where a file could not be made or has no parity.
    """

    taken: bool
    reason: str
    lowered: FileFacts | None = None
    direct: FileFacts | None = None


class TestReport(msgspec.Struct, frozen=True, rename={"float_": "float"}):
    """Quality on the test samples, which no choice uses."""

    __test__ = False  # pytest takes classes named Test* for test cases

    float_: float
    chosen: float
    n: int


class Report(msgspec.Struct, frozen=True, rename={"float_": "float"}):
    """report.json of one target.

    Attributes:
        bundle: Name of the bundle's folder; the reports that `convert` returns have the whole path.
        data: ``given`` or ``random``. With random inputs only parity is known, and quality is null.
        preprocess: Name of the file of preprocessing steps, or ``detected``, or ``none``.
        contents, notes: Of the chosen artifact.
        sensitivity: Layers that the search scored, the most sensitive first.
        route: Result of the direct route; null where it was not evaluated.
        pruning: Dead channels.
    """

    name: str
    version: str
    target: str
    runtime: str
    bundle: str
    source: SourceReport
    metric: str
    data: str
    split: SplitReport | None
    aim: str
    budget: Budget
    float_: FloatReport
    candidates: tuple[CandidateReport, ...]
    chosen: str
    proven: bool
    test: TestReport | None
    parity: tuple[Parity, ...]
    tools: dict[str, str]
    preprocess: str = "none"
    contents: ArtifactContents | None = None
    notes: tuple[str, ...] = ()
    sensitivity: tuple[LayerReport, ...] = ()
    route: RouteReport | None = None
    pruning: Pruning | None = None

    @property
    def chosen_candidate(self) -> CandidateReport:
        """The candidate that was chosen."""
        return next(candidate for candidate in self.candidates if candidate.id == self.chosen)

    @property
    def dead_channels(self) -> str:
        """Sentences on dead channels, for people; empty where the report has none."""
        if self.pruning is None:
            return ""
        chosen = "without" if self.chosen_candidate.recipe.pruned else "with"
        return self.pruning.sentence + (f" The chosen artifact is {chosen} them." if self.pruning.found else "")


def report_json(report: Report) -> bytes:
    """The bytes of report.json."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def report_html(report: Report) -> bytes:
    """The bytes of report.html: one self-contained page that loads no other files."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("converters.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=_size, figure=_figure)
    page = environment.get_template("report.html.j2").render(
        r=report,
        chosen=report.chosen_candidate,
        chart=_chart(report),
        recipe=msgspec.json.encode(report.chosen_candidate.recipe).decode(),
    )
    return page.encode()


def _size(count: int) -> str:
    return f"{count / 1024:,.0f} KiB" if count >= 10 * 1024 else f"{count:,} B"


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _chart(report: Report) -> dict[str, Any] | None:
    """Points of size against drop, in the coordinates of a 640 by 320 image; None without quality."""
    measured = [(number, c, c.drop) for number, c in enumerate(report.candidates, 1) if c.drop is not None]
    if not measured:
        return None
    limit = report.budget.max_drop
    largest = max(c.bytes for _, c, _ in measured) * 1.12
    reach = [
        value for _, _, d in measured for value in (min(d.value, 6 * limit), min(d.upper, 4 * limit + abs(d.value)))
    ]
    low, high = min([0.0, *reach]), max([limit, *reach]) * 1.1 + 1e-9
    low -= 0.08 * (high - low)

    def x(size: float) -> float:
        return round(70 + 540 * size / largest, 1)

    def y(drop: float) -> float:
        return round(20 + 210 * (high - min(drop, high)) / (high - low), 1)

    frontier = _frontier(report)
    points = [
        {
            "id": c.id,
            "x": x(c.bytes),
            "y": y(d.value),
            "top": y(d.upper),
            "verdict": c.verdict,
            "size": _size(c.bytes),
            "number": number,
        }
        for number, c, d in measured
    ]
    _place_numbers(points)
    corners = sorted((x(c.bytes), y(d.value)) for _, c, d in measured if c.id in frontier)
    ticks = [{"x": x(largest * share), "text": _size(int(largest * share))} for share in (0.25, 0.5, 0.75, 1.0)]
    line = " ".join(f"{across},{down}" for across, down in corners)
    lines = {"line": line, "zero": y(0.0), "limit": y(limit), "limit_text": _figure(limit)}
    return {"points": points, "ticks": ticks, **lines}


def _place_numbers(points: list[dict[str, Any]]) -> None:
    """Place each number below its point, and below the numbers that were placed before."""
    for index, point in enumerate(points):
        point["below"] = point["y"] + 20
        while any(abs(p["x"] - point["x"]) < 16 and abs(p["below"] - point["below"]) < 12 for p in points[:index]):
            point["below"] += 12


def _frontier(report: Report) -> set[str]:
    """Ids of the chosen candidate and of all candidates to which no other is both smaller and lower in drop."""
    measured = [(c.bytes, c.drop.value, c.id) for c in report.candidates if c.drop is not None]
    best, frontier = float("inf"), {report.chosen}
    for _, drop, name in sorted(measured):
        if drop < best:
            best = drop
            frontier.add(name)
    return frontier
