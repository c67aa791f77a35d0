"""The values of the selection: the budget, the measurements of one candidate, and its excess over the budget."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from converters.quality.drop import ClassDrop, Drop, Judgement, OutputDrop
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import Recipe

SHARES = ("accuracy", "label-accuracy", "agreement", "auc")  # metrics from 0 to 1
OTHER_MAX_DROP = 0.01  # of the closeness of outputs beside a decision output whose metric is not among these


class Budget(msgspec.Struct, frozen=True):
    """Limits of a bundle.

    Attributes:
        max_drop: Largest allowed drop in the metric's unit.
        confidence: Confidence of the bound on the drop.
        max_bytes: Size limit of the artifact; None for no limit.
        max_cost: Cost limit in the cost's unit; None for no limit.
        max_drops: Largest allowed drop of single outputs, by name, instead of `max_drop`.
        max_drop_any_class: Largest allowed drop in each class and group; None to report the worst class only.
    """

    max_drop: float = 0.01
    confidence: float = 0.95
    max_bytes: int | None = None
    max_cost: float | None = None
    max_drops: dict[str, float] = {}
    max_drop_any_class: float | None = None

    def limits(self, judgement: Judgement) -> Iterator[tuple[OutputDrop, float]]:
        """Each judged output with its largest allowed drop.

        Where the unit of the decision output's metric is not a share, `max_drop` does not fit the other outputs.
        """
        first = judgement.outputs[0]
        others = self.max_drop if first.metric in SHARES else OTHER_MAX_DROP
        for output in judgement.outputs:
            yield output, self.max_drops.get(output.name, self.max_drop if output is first else others)


class Measured(msgspec.Struct, frozen=True):
    """Measurements of one candidate.

    Attributes:
        recipe: Recipe of the candidate.
        bytes: Size of the artifact.
        cost: Cost of one row on the target.
        same: True for a float artifact within parity tolerance that changes no decision.
        judgement: Drops of the judged outputs; None without data. The order of the tests does not depend on the part
            that is measured on the proof split.
        fault: Why the candidate could not be made; empty where it was made.
        divergence: Divergence from the float model's answers on the choice split (see `divergence`); no unit.
        cost_error: Median error of the cost's estimate, as a share; 0 where it is not known.
    """

    recipe: Recipe
    bytes: int
    cost: Cost
    same: bool = False
    judgement: Judgement | None = None
    fault: str = ""
    divergence: float = 0.0
    cost_error: float = 0.0

    @property
    def drop(self) -> Drop | None:
        """Drop of the decision output on the proof split; None without data."""
        return self.judgement.outputs[0].drop if self.judgement else None

    @property
    def choice_drop(self) -> float | None:
        """Drop of the decision output on the choice split; None without data."""
        return self.judgement.outputs[0].choice_drop if self.judgement else None

    def within_on_choice(self, budget: Budget) -> bool:
        """True where every judged output is within its limit on the choice split; False without data."""
        return self.judgement is not None and not excess_on_choice(self.judgement, budget)


def excess_on_choice(judgement: Judgement, budget: Budget) -> list[tuple[OutputDrop, float]]:
    """The outputs beyond their limit on the choice split, with the limits."""
    return [(output, limit) for output, limit in budget.limits(judgement) if output.choice_drop > limit]


def excess_in_estimate(judgement: Judgement, budget: Budget) -> list[tuple[OutputDrop, float]]:
    """The outputs whose measured drop is beyond their limit, on one split or on both together."""
    return [
        (output, limit)
        for output, limit in budget.limits(judgement)
        if max(output.choice_drop, output.drop.value) > limit
    ]


def unproven_outputs(judgement: Judgement, budget: Budget) -> list[tuple[OutputDrop, float]]:
    """The outputs whose drop is not proven to be within their limit."""
    return [(output, limit) for output, limit in budget.limits(judgement) if not output.drop.upper <= limit]


def unproven_class(judgement: Judgement, budget: Budget) -> ClassDrop | None:
    """The class or group that is furthest from a proof; None where all are proven, or none has to be."""
    limit, hardest = budget.max_drop_any_class, judgement.hardest
    if limit is None or hardest is None or hardest.drop.upper <= limit:
        return None
    return hardest
