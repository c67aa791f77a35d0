"""report.json: the candidates, their measurements, and the reason for the choice. `page` makes report.html of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from converters.cost.overhead import FileFacts
from converters.quality.drop import Drop
from converters.quality.measured import Budget
from converters.quality.noise import OutputNoise
from converters.quality.parity import Parity
from converters.report.channels import ChannelReport
from converters.report.outputs import ClassReport, OutputReport
from converters.report.pruning import Pruning
from edgekit.bundle.manifest import Cost, Task
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.scores import row_scores
from edgekit.tensors import Array


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


class SplitReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Number of rows in each split of the data, and the digest of all rows.

    `hard` is the number of rows of the proof that devices kept because they are hard, by reason; report.json has it
    where there are some.
    """

    digest: str
    calibration: int
    choice: int
    proof: int
    hard: dict[str, int] = {}


class DriftReport(msgspec.Struct, frozen=True):
    """The reference with which devices compare their inputs and answers.

    Attributes:
        statistics: Their names; empty without a reference.
        samples: Largest number of samples of a statistic.
        bytes: Size of the reference.
        reason: Why there is none; empty where there is one.
    """

    statistics: tuple[str, ...] = ()
    samples: int = 0
    bytes: int = 0
    reason: str = ""

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        if self.reason:
            return f"The bundle has no reference for drift: {self.reason}."
        return f"Devices compare {len(self.statistics)} statistics with those of {self.samples} samples of the data."


class FloatReport(msgspec.Struct, frozen=True):
    """The canonical float model: its size and its quality on the proof split."""

    bytes: int
    quality: Value | None


class CandidateReport(msgspec.Struct, frozen=True):
    """One candidate.

    `drop` is that of the decision output on the proof split, `verdict` a verdict of `converters.quality.selection`, and
    `cost_error` the median error of the cost's estimate as a share; None where it was not measured.
    """

    id: str
    recipe: Recipe
    bytes: int
    quality: Value | None
    drop: Drop | None
    cost: Cost
    verdict: str
    reason: str
    cost_error: float | None = None


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


PRESENT_THRESHOLD = 0.8  # default of the agent's setting fallback_threshold


class TaskReport(msgspec.Struct, frozen=True):
    """The task of the model, and what a device with the default threshold would do.

    Attributes:
        kind, output, scores: As in the manifest.
        threshold: The default threshold of devices.
        share_sent: Share of the samples whose float answer scores below it; null for a task without scores.
    """

    kind: str
    output: str
    scores: str
    threshold: float
    share_sent: float | None

    @classmethod
    def of(cls, task: Task, answers: Mapping[str, Array]) -> TaskReport:
        """The report on `task`, with the float model's `answers` to the samples."""
        scores = row_scores(task, answers)
        share = None if scores is None else float((scores < PRESENT_THRESHOLD).mean())
        return cls(task.kind, task.output, task.scores, PRESENT_THRESHOLD, share)


class Report(msgspec.Struct, frozen=True, rename={"float_": "float"}):
    """report.json of one target.

    Attributes:
        bundle: Name of the bundle's folder; the reports that `convert` returns have the whole path.
        data: ``given`` or ``random``. With random inputs only parity is known, and quality is null.
        preprocess: Name of the file of preprocessing steps, or ``detected``, ``cut`` or ``none``.
        contents, notes: Of the chosen artifact.
        sensitivity: Layers that the search scored, the most sensitive first.
        route: Result of the direct route; null where it was not evaluated.
        pruning: Dead channels.
        channels: Pruning of other channels; null where it was not asked for.
        outputs: What was proven of each output of the chosen artifact.
        worst_class: The class or group with the largest drop; null without classes.
        noise: The noise of the float model, by output.
        send_inputs: What devices may send to the cloud tier at most.
        task: What the outputs mean, and the share of samples that a device would send to the cloud tier.
        drift: The reference for the test of drift; null in reports of earlier releases.
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
    outputs: tuple[OutputReport, ...] = ()
    worst_class: ClassReport | None = None
    noise: tuple[OutputNoise, ...] = ()
    channels: ChannelReport | None = None
    task: TaskReport | None = None
    send_inputs: str = "allowed"
    drift: DriftReport | None = None

    @property
    def chosen_candidate(self) -> CandidateReport:
        """The candidate that was chosen."""
        return next(candidate for candidate in self.candidates if candidate.id == self.chosen)

    @property
    def dead_channels(self) -> str:
        """Sentences on dead channels, for people; empty where the report has none."""
        if self.pruning is None:
            return ""
        recipe = self.chosen_candidate.recipe
        told = self.pruning.found and not recipe.lossy  # pruning of other channels says itself what it removed
        chosen = f" The chosen artifact is {'without' if recipe.pruned else 'with'} them."
        return self.pruning.sentence + (chosen if told else "")


def report_json(report: Report) -> bytes:
    """The bytes of report.json."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def parse_report(data: bytes) -> Report:
    """The report of the bytes of a report.json.

    JSON has no infinity: bounds that too few samples leave open are null.

    Raises:
        msgspec.MsgspecError: the bytes are no report.
    """
    return msgspec.convert(_with_infinity(msgspec.json.decode(data)), Report)


def _with_infinity(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_infinity(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: _with_infinity(one) for name, one in value.items()}
    if "method" in found:  # a Drop
        found["lower"] = -math.inf if found["lower"] is None else found["lower"]
        found["upper"] = math.inf if found["upper"] is None else found["upper"]
    if found.get("judged") and found.get("tested") is None:
        found["tested"] = math.inf
    return found
