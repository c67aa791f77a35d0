"""report.html: one self-contained page, the answer first."""

from __future__ import annotations

from typing import Any

import jinja2
import msgspec

from converters.report.chart import HEIGHT, WIDTH, chart_of
from converters.report.explain import baseline, explain, plain
from converters.report.report import CandidateReport, Report
from converters.words import figure_text, in_words, origin_text, share_text, size_text, titles


def report_html(report: Report) -> bytes:
    """The bytes of report.html: one page that loads no other files and runs no script."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("converters.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = titles(candidate.recipe for candidate in report.candidates)
    environment.filters.update(
        size=size_text,
        figure=figure_text,
        origin=origin_text,
        words=lambda text: in_words(text, names, chosen=report.chosen),
    )
    environment.globals.update(share=share_text)
    page = environment.get_template("report.html.j2").render(
        r=report,
        chosen=report.chosen_candidate,
        base=baseline(report),
        plain=plain(report),
        names=names,
        why=explain(report),
        rows=_rows(report),
        chart=chart_of(report, names),
        width=WIDTH,
        height=HEIGHT,
        confidence=f"{report.budget.confidence:.0%}".replace("%", " %"),
        largest=max([report.float_.bytes, *(candidate.bytes for candidate in report.candidates), 1]),
        recipe=msgspec.json.encode(report.chosen_candidate.recipe).decode(),
    )
    return page.encode()


def _rows(report: Report) -> list[dict[str, Any]]:
    """The candidates with their numbers, the chosen one first, those that were not made last."""
    numbered = enumerate(report.candidates, 1)
    rows = [{"number": number, "candidate": candidate} for number, candidate in numbered]
    return sorted(rows, key=lambda row: _rank(row["candidate"], report))


def _rank(candidate: CandidateReport, report: Report) -> tuple[bool, bool, float, float]:
    pair = (candidate.cost.value, float(candidate.bytes))
    return (candidate.id != report.chosen, not candidate.bytes, *(pair if report.aim == "cost" else pair[::-1]))
