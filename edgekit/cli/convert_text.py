"""The output of `edgekit convert` for one report: the answer, the candidates, and the explanation."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import note, print_table

if TYPE_CHECKING:
    from converters.report.report import CandidateReport, Report

WIDEST = 100  # columns of text, also on a wider terminal
MOST_ROWS = 12  # candidates that are printed without --explain


def print_report(report: Report, prefix: str, *, explained: bool = False) -> None:
    """Print the report of one target on stdout, and notes on stderr.

    Args:
        report: The report.
        prefix: Text before the path of the bundle.
        explained: Print why this candidate was chosen, and only the candidates that the explanation names.
    """
    from converters.report.explain import explain
    from converters.words import titles

    names, why = titles(candidate.recipe for candidate in report.candidates), explain(report)
    click.echo(f"\n{report.target}: {names[report.chosen]}, {'proven' if report.proven else 'not proven'}")
    if explained:
        _print_sentences(why.sentences)
        rows = [next(c for c in report.candidates if c.id == name) for name in why.rows]
    else:
        _print_sentences((why.sure,))
        rows = _best_first(report)
    click.echo("")
    _print_candidates(report, rows[:MOST_ROWS], names)
    if len(rows) > MOST_ROWS:
        click.echo(f"and {len(rows) - MOST_ROWS} more in report.html")
    _print_rest(report, prefix)


def _print_candidates(report: Report, rows: Iterable[CandidateReport], names: dict[str, str]) -> None:
    from converters.words import figure_text

    print_table(
        ["bytes", "cost", report.metric, "drop", "at most", "verdict", "candidate"],
        [
            (
                candidate.bytes or "-",
                figure_text(candidate.cost.value) if candidate.bytes else "-",
                f"{candidate.quality.value:.4f}" if candidate.quality else "-",
                f"{candidate.drop.value:.4f}" if candidate.drop else "-",
                f"{candidate.drop.upper:.4f}" if candidate.drop else "-",
                candidate.verdict,
                names[candidate.id],
            )
            for candidate in rows
        ],
    )


def _best_first(report: Report) -> list[CandidateReport]:
    """The chosen candidate first, then the others by the aim; those that could not be made last."""

    def rank(candidate: CandidateReport) -> tuple[bool, bool, float, float]:
        pair = (candidate.cost.value, float(candidate.bytes))
        return (candidate.id != report.chosen, not candidate.bytes, *(pair if report.aim == "cost" else pair[::-1]))

    return sorted(report.candidates, key=rank)


def _print_sentences(sentences: Iterable[str]) -> None:
    columns = shutil.get_terminal_size((WIDEST, 24)).columns if sys.stdout.isatty() else WIDEST
    wrapper = textwrap.TextWrapper(min(WIDEST, columns), initial_indent="  ", subsequent_indent="    ")
    for sentence in sentences:
        click.echo(wrapper.fill(sentence))


def _print_rest(report: Report, prefix: str) -> None:
    if report.test is not None:
        click.echo(f"test ({report.test.n} samples): {report.test.chosen:.4f}, float {report.test.float_:.4f}")
    if report.pruning is not None and report.pruning.layers:
        _print_sentences((report.dead_channels,))
    if report.channels is not None:
        _print_sentences((report.channels.sentence,))
    if report.data == "random":
        note("no --data: parity was measured on random inputs; quality is unknown, and static int8 was not tried")
    if report.preprocess == "detected":
        note("clients may send JPEG or PNG; resizing is assumed to be bilinear (--preprocess FILE changes it)")
    click.echo(f"{prefix}{report.bundle}")
