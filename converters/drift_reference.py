"""Makes the reference of a bundle: where the statistics of the data of a conversion lie (`edgekit.drift`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from converters.backends import Artifact
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.report.report import DriftReport
from edgekit.bundle.manifest import Task
from edgekit.drift.outliers import with_bounds
from edgekit.drift.reference import MIN_SAMPLES, TIES, Reference, bounded, summarise
from edgekit.drift.statistics import answer_statistics, input_statistics
from edgekit.tensors import Array

MAX_ROWS = 8192  # whose inputs are read; bounds for MAX_STATISTICS statistics need 6,399
MAX_ANSWERS = 1000  # that the artifact computes
_SEED = 7


class References(msgspec.Struct, frozen=True):
    """The references that the bundles of one conversion can have.

    Attributes:
        values: The statistics of the inputs of each sample, by name.
        held_out: Samples that did not calibrate the artifact; None where there is no reference.
        reason: Why there is none; empty where there is one.
    """

    values: dict[str, list[float]] = {}
    held_out: Samples | None = None
    reason: str = ""

    @classmethod
    def of(cls, calibration: Samples | None, choice: Samples, proof: Samples) -> References:
        """Read the three splits of the data; `calibration` is None for random inputs."""
        if calibration is None:
            return cls(reason="the inputs are random")
        if choice.feeds:
            return cls(reason="the samples of a stream depend on each other")
        count = len(calibration) + len(choice) + len(proof)
        if count < MIN_SAMPLES:
            return cls(reason=f"the data have {count} samples, and a reference needs {MIN_SAMPLES}")
        generator, values = np.random.default_rng(_SEED), dict[str, list[float]]()
        begin, chosen = 0, _spread(count, MAX_ROWS)
        for part in (calibration, choice, proof):
            rows = chosen[(chosen >= begin) & (chosen < begin + len(part))] - begin
            begin += len(part)
            for row in rows:
                for name, value in part.inputs.items():
                    for key, number in input_statistics(name, value[row], generator.random).items():
                        values.setdefault(key, []).append(number)
        held = {name: np.concatenate([choice.inputs[name], proof.inputs[name]]) for name in choice.inputs}
        return cls(values, Samples(held))

    def for_artifact(self, artifact: Artifact, task: Task, folder: Path) -> tuple[bytes, DriftReport]:
        """The bytes of the reference, empty without one, and what the report says of it.

        The answers are the artifact's own, through the runtime of the device, because its scores differ from those of
        the float model.

        Raises:
            RuntimeLoadError: the runtime cannot load or run the artifact.
        """
        if self.held_out is None:
            return b"", DriftReport(reason=self.reason)
        values = self._answers(artifact, task, folder) | self.values
        reference = _reference(values)
        if not reference.statistics:
            return b"", DriftReport(reason="no input holds numbers")
        data = reference.canonical_bytes()
        samples = max(one.samples for one in reference.statistics)
        return data, DriftReport(tuple(one.name for one in reference.statistics), samples, len(data))

    def _answers(self, artifact: Artifact, task: Task, folder: Path) -> dict[str, list[float]]:
        assert self.held_out is not None
        if task.kind == "other":
            return {}
        rows = _spread(len(self.held_out), MAX_ANSWERS)
        runtime = open_artifact(artifact, folder)
        try:
            answers = run_rows(runtime, self.held_out.take(rows).inputs)
        finally:
            runtime.close()
        values: dict[str, list[float]] = {}
        for row in range(len(rows)):
            for name, number in answer_statistics(task, _row(answers, row)).items():
                values.setdefault(name, []).append(number)
        return values


def _spread(count: int, most: int) -> Array:
    """At most `most` of the numbers 0 to `count` - 1, evenly spread (M,)."""
    return np.arange(count) if count <= most else np.arange(most) * count // most


def _row(answers: Mapping[str, Array], row: int) -> dict[str, Array]:
    return {name: value[row : row + 1] for name, value in answers.items()}


def _reference(values: Mapping[str, list[float]]) -> Reference:
    """The reference of all statistics with enough samples; ties are drawn anew for each, always the same."""
    generator = np.random.default_rng(_SEED)
    statistics = [
        summarise(name, found, generator.integers(TIES, size=len(found)).tolist())
        for name, found in values.items()
        if len(found) >= MIN_SAMPLES
    ]
    return bounded(with_bounds(statistics, values))
