"""report.json and report.html: what was tried, what was measured, and why one candidate was taken."""

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
    """A constant: which operators read it, how it is held, and its bytes in the file."""

    reader: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class Contents(msgspec.Struct, frozen=True):
    """What is in an artifact.

    Attributes:
        operators: How many there are of each kind, the most frequent first.
        constants: The largest, the largest first.
        smaller: Bytes of all other constants.
        rest: Bytes of the file that are no constant: the graph, names, scales.
        pieces: Into how many pieces LiteRT's XNNPACK takes the graph; None where the runtime does not tell.
        delegated: XNNPACK has every layer with weights; what is left to built-in kernels are steps like a softmax.
    """

    operators: dict[str, int]
    constants: tuple[Constant, ...]
    smaller: int
    rest: int
    pieces: int | None = None
    delegated: bool = False


class Value(msgspec.Struct, frozen=True):
    """A metric over `n` samples."""

    value: float
    n: int


class SourceReport(msgspec.Struct, frozen=True):
    """The model that was converted: its file name, digest and format."""

    path: str
    sha256: str
    format: str


class SplitReport(msgspec.Struct, frozen=True):
    """Rows in each part of the data, and the digest of all of them."""

    digest: str
    calibration: int
    choice: int
    proof: int


class FloatReport(msgspec.Struct, frozen=True):
    """The canonical float model: its size and its quality on the proof split."""

    bytes: int
    quality: Value | None


class CandidateReport(msgspec.Struct, frozen=True):
    """One candidate; `drop` is on the proof split. `verdict` is one of those of proof.py."""

    id: str
    recipe: Recipe
    bytes: int
    quality: Value | None
    drop: Drop | None
    cost: Cost
    verdict: str
    reason: str


class LayerReport(msgspec.Struct, frozen=True):
    """What is lost when one layer alone has 8 or 4 bits: distances from the float model (see distance.py)."""

    name: str
    operator: str
    int8: float
    int4: float | None


class RouteReport(msgspec.Struct, frozen=True):
    """What came of the source's own way to LiteRT (see routes.py), and what tells the two float files apart.

    Attributes:
        taken: Its kinds are candidates.
        reason: Why, or why not.
        lowered, direct: The files; None where one could not be made, or is off.
    """

    taken: bool
    reason: str
    lowered: FileFacts | None = None
    direct: FileFacts | None = None


class TestReport(msgspec.Struct, frozen=True, rename={"float_": "float"}):
    """Quality on data that was never chosen by."""

    __test__ = False  # not a test case, whatever its name looks like to a collector

    float_: float
    chosen: float
    n: int


class Report(msgspec.Struct, frozen=True, rename={"float_": "float"}):
    """report.json of one target. `bundle` is the folder's name; what `convert` returns has its whole path.

    `data` is ``given`` or ``random``: with random inputs only parity is known, and quality is null. `preprocess` names
    the file of steps before and after the model, or is ``detected`` or ``none``. `contents` and `notes` are those of
    the chosen artifact. `sensitivity` has the layers that the search asked for, the most sensitive first. `route` is
    null where there is no way past the canonical graph, or nobody looked. `pruning` tells of dead channels.
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
    contents: Contents | None = None
    notes: tuple[str, ...] = ()
    sensitivity: tuple[LayerReport, ...] = ()
    route: RouteReport | None = None
    pruning: Pruning | None = None

    @property
    def taken(self) -> CandidateReport:
        """The candidate that was chosen."""
        return next(candidate for candidate in self.candidates if candidate.id == self.chosen)

    @property
    def dead(self) -> str:
        """What a reader should know of dead channels; empty where there is nothing to say."""
        if self.pruning is None:
            return ""
        taken = f" The chosen artifact is {'without' if self.taken.recipe.pruned else 'with'} them."
        return self.pruning.sentence + (taken if self.pruning.found else "")


def report_json(report: Report) -> bytes:
    """The bytes of report.json."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def report_html(report: Report) -> bytes:
    """The bytes of report.html: one self-contained page that loads nothing."""
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
        chosen=report.taken,
        chart=_chart(report),
        recipe=msgspec.json.encode(report.taken.recipe).decode(),
    )
    return page.encode()


def _size(count: int) -> str:
    return f"{count / 1024:,.0f} KiB" if count >= 10 * 1024 else f"{count:,} B"


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _chart(report: Report) -> dict[str, Any] | None:
    """Points of size against drop, in the coordinates of a 640 by 320 picture; None without quality."""
    known = [(number, c, c.drop) for number, c in enumerate(report.candidates, 1) if c.drop is not None]
    if not known:
        return None
    limit = report.budget.max_drop
    largest = max(c.bytes for _, c, _ in known) * 1.12
    reach = [value for _, _, d in known for value in (min(d.value, 6 * limit), min(d.upper, 4 * limit + abs(d.value)))]
    low, high = min([0.0, *reach]), max([limit, *reach]) * 1.1 + 1e-9
    low -= 0.08 * (high - low)

    def x(size: float) -> float:
        return round(70 + 540 * size / largest, 1)

    def y(drop: float) -> float:
        return round(20 + 210 * (high - min(drop, high)) / (high - low), 1)

    edge = _frontier(report)
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
        for number, c, d in known
    ]
    _place_numbers(points)
    corners = sorted((x(c.bytes), y(d.value)) for _, c, d in known if c.id in edge)
    ticks = [{"x": x(largest * share), "text": _size(int(largest * share))} for share in (0.25, 0.5, 0.75, 1.0)]
    line = " ".join(f"{across},{down}" for across, down in corners)
    found = {"points": points, "ticks": ticks, "zero": y(0.0), "limit": y(limit), "limit_text": _figure(limit)}
    return {**found, "line": line}


def _place_numbers(points: list[dict[str, Any]]) -> None:
    """Each number below its point, and below the numbers that are there already."""
    for index, point in enumerate(points):
        point["below"] = point["y"] + 20
        while any(abs(p["x"] - point["x"]) < 16 and abs(p["below"] - point["below"]) < 12 for p in points[:index]):
            point["below"] += 12


def _frontier(report: Report) -> set[str]:
    """Ids of candidates that none is both smaller than and nearer to float than, and of the chosen one."""
    known = [(c.bytes, c.drop.value, c.id) for c in report.candidates if c.drop is not None]
    best, edge = float("inf"), {report.chosen}
    for _, drop, name in sorted(known):
        if drop < best:
            best = drop
            edge.add(name)
    return edge
