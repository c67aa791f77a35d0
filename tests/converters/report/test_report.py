"""The page and the explanation of reports that are built here."""

import itertools
import re

import msgspec
import pytest

from converters.quality.drop import Drop
from converters.quality.measured import Budget
from converters.report.chart import CHARACTER, HEIGHT, WIDTH, chart_of, size_ticks
from converters.report.explain import explain
from converters.report.outputs import ClassReport, OutputReport
from converters.report.page import report_html
from converters.report.report import (
    CandidateReport,
    FloatReport,
    Report,
    SourceReport,
    Value,
)
from converters.words import titles
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import Recipe

FOUR_BITS = Recipe(precision="int8", int4_layers=("a", "b"), rounding="gptq")


def candidate(recipe, size, cost, drop, verdict, reason="because"):
    bound = Drop(drop[0], 0.0, drop[1], 300, "betting") if drop else None
    value = Value(0.9 - drop[0], 300) if drop else None
    return CandidateReport(
        recipe.id, recipe, size, value, bound, Cost("estimate", cost, "instructions"), verdict, reason
    )


def report(*rows, **changes):
    rows = rows or (
        candidate(Recipe(), 100_000, 1000.0, (0.0, 0.005), "fits", "same answers"),
        candidate(Recipe(precision="int8"), 30_000, 400.0, (0.001, 0.008), "chosen", "the cheapest that fits"),
        candidate(FOUR_BITS, 20_000, 450.0, (0.02, 0.04), "refused", "drop of 0.02; int8 is nearer"),
        candidate(Recipe(precision="int8-dynamic"), 30_100, 350.0, (0.004, 0.02), "unproven", "may be as much as 0.02"),
        candidate(Recipe(precision="float16"), 0, 0.0, None, "failed", "it could not be made"),
    )
    chosen = next(row.id for row in rows if row.verdict == "chosen")
    made = Report(
        name="m", version="1.0.0", target="raspberry-pi-4", runtime="litert", bundle="m-1.0.0-raspberry-pi-4",
        source=SourceReport("m.onnx", "0" * 64, "onnx"), metric="accuracy", data="given", split=None, aim="cost",
        budget=Budget(), float_=FloatReport(101_000, Value(0.9, 300)), candidates=rows, chosen=chosen, proven=True,
        test=None, parity=(), tools={},
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def text_of(page: bytes) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.decode()))


def test_explanation_says_why_neither_the_smaller_nor_the_cheaper():
    """Both are named in words with their gain and their reason; the chosen one is called so."""
    why = explain(report())
    assert why.answer.startswith("Chosen: int8. Size: 29.3 KiB, 30 % of float32. Cost: 400 instructions")
    assert "at most 0.008 at 95% confidence; the limit is 0.01" in why.sure
    assert why.smaller == (
        "int8, 2 layers at 4 bits, GPTQ: 33 % smaller (19.5 KiB). Refused: drop of 0.02; the chosen one is nearer.",
    )
    assert why.cheaper == ("int8 dynamic: costs 12 % less. Unproven: may be as much as 0.02.",)
    assert why.rows[0] == "int8"


def test_explanation_of_the_best_in_everything_says_so():
    """With one candidate there is nothing smaller or cheaper."""
    why = explain(report(candidate(Recipe(), 10, 1.0, None, "chosen"), data="random"))
    assert why.smaller == ("No smaller candidate was made.",)
    assert why.cheaper == ("No cheaper candidate was made.",)
    assert "quality is unknown" in why.sure


def test_unproven_choice_is_called_so():
    """The explanation and the page say that nothing is proven."""
    row = candidate(Recipe(precision="int8"), 10, 1.0, (0.0, 0.05), "chosen", "point estimate 0 accepted without proof")
    unproven = report(row, proven=False)
    assert "This is not proven" in explain(unproven).sure
    assert "not proven" in text_of(report_html(unproven))


def test_page_has_the_answer_first_and_loads_nothing():
    """The chosen title is before the table; there is no script and no address; ids stand beside titles."""
    page = report_html(report()).decode()
    assert page.index("<h2>int8</h2>") < page.index("Why this one") < page.index("<h2>Candidates</h2>")
    assert FOUR_BITS.id in page
    assert not any(word in page for word in ("http://", "https://", "src=", "<script", "@import"))


def test_page_shows_what_is_proven_of_each_output_and_the_worst_class():
    """A report with outputs and a worst class shows them; one without them has no such section."""
    assert "each output" not in text_of(report_html(report()))
    full = report(
        outputs=(
            OutputReport("scores", "accuracy", Drop(0.0, 0.0, 0.008, 300, "betting"), True, 0.01, True, 0.008),
            OutputReport("boxes", "agreement", Drop(0.3, 0.2, 0.4, 300, "betting"), True, 0.01, False, 0.4),
            OutputReport("debug", "", None, False),
        ),
        worst_class=ClassReport(
            "7 <truck>", Drop(0.1, 0.0, 0.2, 48, "clopper-pearson"), 10, too_few={"2": 7}, needed=59, limit=0.05
        ),
    )
    text = text_of(report_html(full))
    for part in ("scores accuracy 0 0.008 0.01", "boxes agreement 0.3 0.4 0.01", "left out", "7 &lt;truck&gt;"):
        assert part in text


@pytest.mark.parametrize("count", [1, 2, 15, 60])
def test_labels_of_the_chart_do_not_overlap(count):
    """For crowded and for few candidates: labels meet no other label, stay inside, and sizes grow to the right."""
    rows = [
        candidate(
            Recipe(precision="int8", int4_layers=tuple(f"l{k}" for k in range(n + 1))), 5_000 + 37 * n * n, 1.0,
            (0.0005 * (n % 7), 0.004 + 0.001 * (n % 9)), "chosen" if n == count // 2 else "dominated",
        )
        for n in range(count)
    ]  # fmt: skip
    made = report(*rows)
    chart = chart_of(made, titles(row.recipe for row in rows))
    labels = [point.label for point in chart.points if point.label]
    assert any(point.label and point.verdict == "chosen" for point in chart.points)
    for index, label in enumerate(labels):
        assert 0 <= label.box.x0 < label.box.x1 <= WIDTH
        assert 0 <= label.box.y0 < label.box.y1 <= HEIGHT
        assert not any(label.box.meets(other.box) for other in labels[:index])
    by_size = sorted((made.candidates[point.number - 1].bytes, point.x) for point in chart.points)
    assert [x for _, x in by_size] == sorted(x for _, x in by_size)


@pytest.mark.parametrize(("least", "most"), [(900, 1300), (2_100, 3_300), (5e3, 4e5), (9e5, 1.3e6), (1e5, 9e7)])
def test_size_axis_has_a_few_round_marks(least, most):
    """Three to eight marks inside the range."""
    ticks = size_ticks(least, most)
    assert 2 <= len(ticks) <= 9
    assert all(least <= tick <= most for tick in ticks)


@pytest.mark.parametrize("sizes", [(8_284, 15_770), (15_000_000, 15_400_000), (700, 90_000), (1_000, 1_020)])
def test_texts_of_the_size_axis_have_space_between_them(sizes):
    """Also where the sizes are near each other, and marks are there on both halves of the axis."""
    small = candidate(Recipe(precision="int8"), sizes[0], 400.0, (0.001, 0.008), "chosen")
    ticks = chart_of(
        report(candidate(Recipe(), sizes[1], 1000.0, (0.0, 0.005), "fits"), small),
        {"float32": "float32", "int8": "int8"},
    ).x_ticks
    ends = [(tick.at - CHARACTER * len(tick.text) / 2, tick.at + CHARACTER * len(tick.text) / 2) for tick in ticks]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    assert ticks[0].at < WIDTH / 2 < ticks[-1].at
    assert len({tick.text for tick in ticks}) == len(ticks)


def test_counted_costs_are_called_a_count():
    """Their kind is called instructions, as their unit is."""
    counted = msgspec.structs.replace(
        candidate(Recipe(precision="int8"), 30_000, 400.0, (0.001, 0.008), "chosen"),
        cost=Cost("instructions", 400.0, "instructions"),
    )
    made = report(candidate(Recipe(), 100_000, 1000.0, (0.0, 0.005), "fits"), counted)
    assert "instructions (count)" in text_of(report_html(made))
    assert "400 instructions for one row (count)" in explain(made).answer


def test_no_chart_without_measured_drops():
    """A report without data draws nothing."""
    assert chart_of(report(candidate(Recipe(), 10, 1.0, None, "chosen")), {"float32": "float32"}) is None


def test_an_output_or_class_that_is_not_proven_is_named():
    """Where the decision output keeps its limit, the explanation says which output and which class do not."""
    boxes = OutputReport("boxes", "agreement", Drop(0.02, 0.0, 0.05, 300, "betting"), True, 0.01, False)
    worst = ClassReport("truck", Drop(0.1, 0.0, 0.3, 40, "betting"), 5, limit=0.05)
    sure = explain(report(proven=False, outputs=(boxes,), worst_class=worst)).sure
    assert "at most 0.008" in sure
    assert "Output boxes may lose as much as 0.05; its limit is 0.01" in sure
    assert "truck may lose as much as 0.3; the limit is 0.05" in sure
    assert sure.endswith("This is not proven.")


def test_limits_in_an_explanation_are_those_of_each_output():
    """The decision output has a limit of its own, and is named once, by the bound of its own test."""
    scores = OutputReport("scores", "accuracy", Drop(0.001, -0.02, 0.012, 300, "betting"), True, 0.3, True, 0.008)
    boxes = OutputReport("boxes", "agreement", Drop(0.02, 0.0, 0.05, 300, "betting"), True, 0.2, True, 0.04)
    sure = explain(report(outputs=(scores, boxes))).sure
    assert sure == (
        "The drop in accuracy of output scores is 0.001 on 300 proof samples, and at most 0.008 at 95% confidence; the "
        "limit is 0.3. Each of the 2 judged outputs is within its own limit."
    )
    scores, boxes = (msgspec.structs.replace(one, limit=0.005, proven=False) for one in (scores, boxes))
    sure = explain(report(proven=False, outputs=(scores, boxes))).sure
    assert (
        "may be as much as 0.008 at 95% confidence; the limit is 0.005. Output boxes may lose as much as 0.04" in sure
    )
    assert "Output scores" not in sure


def test_a_cheaper_candidate_that_fits_costs_the_same_within_the_error():
    """With --aim cost the cheapest is taken, so the explanation says why it is not."""
    why = explain(
        report(
            msgspec.structs.replace(
                candidate(Recipe(), 2000, 99.0, (0.0, 0.005), "fits", "same answers"), cost_error=0.04
            ),
            candidate(Recipe(precision="int8"), 1700, 100.0, (0.001, 0.008), "chosen", "the smallest of equals"),
        )
    )
    assert why.cheaper == (
        "float32: costs 1 % less. It fits (same answers), but the estimate, whose median error is 4%, does not tell "
        "these costs apart, and it has 1.95 KiB.",
    )
