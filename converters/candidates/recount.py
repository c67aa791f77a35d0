"""Counts the instructions of the last candidates on the target's core, and chooses again by the counts.

Only where `make arm` was run; elsewhere the estimates stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from converters.candidates.candidate import Candidate, open_artifact
from converters.cost.emulated.folder import missing
from converters.cost.estimate import INSTRUCTIONS
from converters.cost.file_estimate import core_of_target
from converters.cost.measuring.inputs import first_sample
from converters.cost.measuring.process import Measuring
from converters.data.samples import Samples
from converters.progress import StepCallback
from converters.quality.measured import Budget
from converters.quality.selection import Choice, choose_by_counts, finalists
from edgekit.bundle.manifest import Cost
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import RuntimeLoadError, UnavailableError

COUNTED = "instructions"  # kind of a cost
COUNT_ERROR = 0.001  # repeated counts differ by at most this share
FINALISTS = 3
MOST_INSTRUCTIONS = 5e8  # of one run by its estimate: more would take minutes in the emulator
REFERENCE = "float32"


class Recounted(msgspec.Struct, frozen=True):
    """The candidates with counted costs where there are any, the choice, and sentences for the report."""

    candidates: list[Candidate]
    choice: Choice
    notes: tuple[str, ...] = ()


def recount(
    candidates: list[Candidate],
    choice: Choice,
    *,
    aim: str,
    budget: Budget,
    profile: TargetProfile,
    samples: Samples,
    folder: Path,
    step: StepCallback,
) -> Recounted:
    """Count the best candidates that fit, and the float32 one that others are compared with.

    Args:
        candidates: Every candidate.
        choice: The choice by estimates.
        aim, budget: As `choose`. By size, costs are not what candidates are chosen by, and nothing is counted.
        profile: The target.
        samples: Each run takes the first of them.
        folder: Scratch folder.
        step: Shows the step.

    Raises:
        RefusedError: By their counts, none of the last candidates is within the budget's limit on the cost.
    """
    core = core_of_target(profile)
    if aim != "cost" or not core or missing() is not None:
        return Recounted(candidates, choice)
    names = finalists([c.measured for c in candidates], choice, aim=aim, count=FINALISTS)
    wanted = [c for c in candidates if c.measured.recipe.id in (*names, REFERENCE) and c.artifact is not None]
    if any(c.measured.cost.value > MOST_INSTRUCTIONS for c in wanted):
        note = f"the cost is an estimate: counting so many instructions on an emulated {core} would take minutes"
        return Recounted(candidates, choice, (note,))
    try:
        with step(f"{profile.name}: count the instructions of {len(wanted)} candidates on an emulated {core}"):
            costs = _count(wanted, core, samples, folder)
    except (RuntimeLoadError, UnavailableError) as error:
        return Recounted(
            candidates, choice, (f"the cost is an estimate: counting failed on an emulated {core}: {error}",)
        )
    made = [_with_cost(c, costs.get(c.measured.recipe.id)) for c in candidates]
    counted = [c.measured for c in made if c.measured.recipe.id in names]
    return Recounted(made, choose_by_counts(counted, choice, budget, aim=aim))


def _count(candidates: Sequence[Candidate], core: str, samples: Samples, folder: Path) -> dict[str, Cost]:
    """The counted cost of each candidate by id."""
    costs = {}
    with Measuring(core) as measuring:
        for candidate in candidates:
            artifact, place = candidate.artifact, folder / candidate.measured.recipe.id
            assert artifact is not None
            runtime = open_artifact(artifact, place)
            try:
                inputs = first_sample(runtime, artifact.inputs, samples.inputs)
            finally:
                runtime.close()
            found = measuring.measure(place / artifact.file, artifact.runtime, inputs)
            if found.instructions is None:
                raise UnavailableError(found.not_counted)
            costs[candidate.measured.recipe.id] = Cost(COUNTED, float(round(found.instructions)), INSTRUCTIONS)
    return costs


def _with_cost(candidate: Candidate, cost: Cost | None) -> Candidate:
    if cost is None:
        return candidate
    measured = msgspec.structs.replace(candidate.measured, cost=cost, cost_error=COUNT_ERROR)
    return msgspec.structs.replace(candidate, measured=measured)
