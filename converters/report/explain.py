"""Why a candidate was chosen, and not a smaller or a cheaper one: sentences and rows for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from converters.quality.selection import FITS
from converters.report.outputs import OutputReport
from converters.report.report import CandidateReport, Report
from converters.words import figure_text, in_words, origin_text, share_text, size_text, titles
from edgekit.bundle.recipe import PRESETS

BETTER_ROWS = 3  # smaller candidates, and cheaper ones, that an explanation names
SAME_COST = 0.005  # relative difference of costs that is not told apart in sentences


class Explanation(msgspec.Struct, frozen=True):
    """The answer first, then the reasons. Every part is whole sentences.

    Attributes:
        answer: What was chosen, its size and its cost.
        sure: What is proven, and how sure.
        aim: What the choice minimizes.
        smaller, cheaper: For each smaller and each cheaper candidate, why it was not chosen.
        rows: Ids of the candidates that the sentences compare, the chosen one first.
    """

    answer: str
    sure: str
    aim: str
    smaller: tuple[str, ...]
    cheaper: tuple[str, ...]
    rows: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All parts, in order."""
        return (self.answer, self.sure, self.aim, *self.smaller, *self.cheaper)


def explain(report: Report) -> Explanation:
    """The explanation of a report's choice."""
    names, chosen = titles(c.recipe for c in report.candidates), report.chosen_candidate
    smaller = _better(report, lambda c: float(c.bytes), 0.0)
    cheaper = _better(report, lambda c: c.cost.value, SAME_COST)
    base = baseline(report)
    compared = [chosen, *smaller, *cheaper, *([base] if base else [])]
    return Explanation(
        answer=_answer(report, names),
        sure=how_sure(report),
        aim=_aim(report),
        smaller=_why_not(report, "smaller", smaller, names),
        cheaper=_why_not(report, "cheaper", cheaper, names),
        rows=tuple(dict.fromkeys(c.id for c in compared)),
    )


def baseline(report: Report) -> CandidateReport | None:
    """The plain float32 candidate, with which sizes and costs are compared; None where none was made."""
    return next((c for c in report.candidates if c.recipe == PRESETS["float32"] and c.bytes), None)


def plain(report: Report) -> tuple[CandidateReport, ...]:
    """Candidates with one precision and no other choice, as a converter makes them without a search."""
    return tuple(c for c in report.candidates if c.recipe in PRESETS.values() and c.bytes)


def how_sure(report: Report) -> str:
    """Sentences on the quality of the chosen candidate."""
    chosen, budget = report.chosen_candidate, report.budget
    confidence = f"{budget.confidence:.0%} confidence"
    if chosen.drop is None:
        return "Its answers are those of the float model, within parity tolerance on random inputs; quality is unknown."
    drop, first, count = chosen.drop, _decision(report), sum(one.judged for one in report.outputs)
    most = budget.max_drop if first is None or first.limit is None else first.limit
    of = f" of output {first.name}" if first is not None and count > 1 else ""
    measured = f"The drop in {report.metric}{of} is {figure_text(drop.value)} on {drop.n:,} proof samples"
    others = [f"Each of the {count} judged outputs is within its own limit."] if count > 1 else []
    if report.proven and drop.upper > most:
        same = "its answers are those of the float model within parity tolerance, so no bound is needed"
        return " ".join([f"{measured}, and {same}.", *others])
    bound = "may be as much as" if drop.upper > most else "at most"
    sentence = f"{measured}, and {bound} {figure_text(drop.upper)} at {confidence}; the limit is {figure_text(most)}."
    if report.proven:
        return " ".join([sentence, *others])
    return " ".join([sentence, *_not_proven(report, first), "This is not proven."])


def _decision(report: Report) -> OutputReport | None:
    """The output whose drop is that of the candidates; None in reports of earlier releases."""
    drop = report.chosen_candidate.drop
    for one in report.outputs:
        if drop is not None and one.drop is not None and (one.drop.value, one.tested) == (drop.value, drop.upper):
            return one
    return None


def _not_proven(report: Report, first: OutputReport | None) -> list[str]:
    """A sentence for each other output, and for the classes, whose own limit is not proven."""
    sentences = [
        f"Output {one.name} may lose as much as {figure_text(one.drop.upper if one.tested is None else one.tested)}; "
        f"its limit is {figure_text(one.limit)}."
        for one in report.outputs
        if one.judged and not one.proven and one.drop is not None and one.limit is not None and one is not first
    ]
    worst = report.worst_class
    if worst is not None and worst.limit is not None and not worst.proven:
        upper, limit = figure_text(worst.drop.upper), figure_text(worst.limit)
        sentences.append(f"Of the classes, {worst.label} may lose as much as {upper}; the limit is {limit}.")
    return sentences


def _answer(report: Report, names: Mapping[str, str]) -> str:
    chosen, base = report.chosen_candidate, baseline(report)
    size = f"{size_text(chosen.bytes)}"
    cost = f"{figure_text(chosen.cost.value)} {chosen.cost.unit} for one row ({origin_text(chosen.cost.kind)})"
    if base is not None and base is not chosen:
        size += f", {share_text(chosen.bytes, base.bytes)} of float32"
        cost += f", {share_text(chosen.cost.value, base.cost.value)} of float32"
    return f"Chosen: {names[chosen.id]}. Size: {size}. Cost: {cost}."


def _aim(report: Report) -> str:
    first, second = ("cheapest", "smallest") if report.aim == "cost" else ("smallest", "cheapest")
    return f"--aim {report.aim} takes the {first} candidate that fits, and the {second} of equally good ones."


def _better(report: Report, measure: Callable[[CandidateReport], float], margin: float) -> tuple[CandidateReport, ...]:
    """Candidates with less than the chosen one, the best first."""
    limit = measure(report.chosen_candidate) * (1.0 - margin)
    better = [c for c in report.candidates if c.bytes and measure(c) < limit and c.id != report.chosen]
    return tuple(sorted(better, key=measure))[:BETTER_ROWS]


def _why_not(
    report: Report, word: str, candidates: tuple[CandidateReport, ...], names: Mapping[str, str]
) -> tuple[str, ...]:
    """For each of `candidates`: how much smaller or cheaper it is than the chosen one, and why it was not chosen."""
    if not candidates:
        return (f"No {word} candidate was made.",)
    return tuple(f"{names[c.id]}: {_gain(report, c, word)}. {_reason(report, c, word, names)}." for c in candidates)


def _gain(report: Report, candidate: CandidateReport, word: str) -> str:
    chosen = report.chosen_candidate
    if word == "smaller":
        saved = share_text(chosen.bytes - candidate.bytes, chosen.bytes)
        return f"{saved} smaller ({size_text(candidate.bytes)})"
    return f"costs {share_text(chosen.cost.value - candidate.cost.value, chosen.cost.value)} less"


def _reason(report: Report, candidate: CandidateReport, word: str, names: Mapping[str, str]) -> str:
    reason = in_words(candidate.reason, names, chosen=report.chosen)
    if candidate.verdict == FITS:
        cost = share_text(candidate.cost.value, report.chosen_candidate.cost.value)
        loss = (
            f"its cost is {cost} of the chosen one's" if word == "smaller" else f"it has {size_text(candidate.bytes)}"
        )
        if word == "cheaper" and report.aim == "cost":  # equal costs, of which the smallest file is taken
            error = "" if candidate.cost_error is None else f", whose median error is {candidate.cost_error:.0%},"
            loss = f"the {origin_text(candidate.cost.kind)}{error} does not tell these costs apart, and {loss}"
        return f"It fits ({reason}), but {loss}"
    verdict = candidate.verdict.capitalize()
    return f"{verdict}: {reason.removeprefix('not tested: ')}"
