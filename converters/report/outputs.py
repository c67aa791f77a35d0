"""The parts of a report on each output and on the worst class."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from converters.quality.drop import Drop, Judgement, samples_needed
from converters.quality.measured import Budget


class OutputReport(msgspec.Struct, frozen=True):
    """One output of the chosen artifact.

    Attributes:
        name: The output.
        metric: Name of its metric; empty where it is not judged.
        drop: Its drop on the proof split, with bounds that hold together for all outputs at the stated confidence;
            None where it is not judged.
        judged: False where there are no data, or the user excluded the output.
        limit: Largest allowed drop.
        proven: The test of this output alone passed at the full confidence, or a float artifact answers as the float
            model does.
        tested: Upper bound of that test; None where the output is not judged.
    """

    name: str
    metric: str
    drop: Drop | None
    judged: bool
    limit: float | None = None
    proven: bool = False
    tested: float | None = None


class ClassReport(msgspec.Struct, frozen=True):
    """The class or group with the largest drop.

    Attributes:
        label: Name of the class, or of the group.
        drop: Its drop, with bounds that hold together for all classes and groups at the stated confidence.
        count: Number of classes and groups that were compared.
        unseen: Names of classes without proof samples.
        limit: Largest allowed drop in each class; None where it is only reported.
        proven: Every class is proven to be within `limit`.
        needed: For each class, the proof samples that could prove `limit`; None without a limit.
        too_few: Names of the classes with fewer samples, with their number.
    """

    label: str
    drop: Drop
    count: int
    unseen: tuple[str, ...] = ()
    limit: float | None = None
    proven: bool = False
    needed: int | None = None
    too_few: dict[str, int] = {}


def output_reports(
    names: Sequence[str], judgement: Judgement | None, budget: Budget, *, same: bool
) -> tuple[OutputReport, ...]:
    """One report per output, in the order of `names`; `same` marks a float artifact with the float model's answers."""
    if judgement is None:
        return tuple(OutputReport(name, "", None, judged=False) for name in names)
    judged = {output.name: (output, limit) for output, limit in budget.limits(judgement)}
    reports = []
    for name in names:
        if name not in judged:
            reports.append(OutputReport(name, "", None, judged=False))
            continue
        output, limit = judged[name]
        proven, upper = same or output.drop.upper <= limit, output.drop.upper
        reports.append(OutputReport(name, output.metric, output.shown, True, limit, proven, upper))
    return tuple(reports)


def class_report(
    judgement: Judgement | None, sizes: dict[str, int], budget: Budget, *, same: bool
) -> ClassReport | None:
    """The report of the worst class; None without classes. `sizes` has the proof samples of each class and group."""
    if judgement is None or judgement.worst is None or judgement.hardest is None:
        return None
    limit = budget.max_drop_any_class
    needed = samples_needed(limit, budget.confidence) if limit is not None else None
    return ClassReport(
        label=judgement.worst.name,
        drop=judgement.worst.shown,
        count=sum(size > 0 for size in sizes.values()),
        unseen=tuple(name for name, size in sizes.items() if size == 0),
        limit=limit,
        proven=limit is not None and (same or judgement.hardest.drop.upper <= limit),
        needed=needed,
        too_few={name: size for name, size in sizes.items() if needed is not None and size < needed},
    )
