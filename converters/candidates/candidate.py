"""Makes one candidate and measures it through the adapter that devices use."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from converters.backends import Artifact, Backend
from converters.cost.estimate import estimate
from converters.cost.overhead import NONE, Overhead
from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.quality import parity
from converters.quality.confidence import likely_method
from converters.quality.divergence import divergence
from converters.quality.metrics import AGREEMENT, Metric, drop_of, score
from converters.quality.parity import Parity
from converters.quality.selection import Budget, Measured
from converters.report.report import Value
from edgekit.bundle.manifest import ROLE_MODEL, Cost, FileEntry, Golden, Manifest, Task
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError, EdgekitError, RuntimeLoadError, UnsupportedOpError
from edgekit.runtimes import LogicalRuntime, open_runtime
from edgekit.tensors import Array

CHUNK_ROWS = 64
HOST_PROVIDERS = ("CPUExecutionProvider",)


class Evidence(msgspec.Struct, frozen=True):
    """Samples with the canonical float model's answers, and the rules that judge other answers.

    Attributes:
        choice, proof: The choice and proof splits; without data both are the same random inputs.
        choice_answers, proof_answers: The float model's answers (N, ...) by output.
        metric: The metric; None without data.
        output: Name of the output that the metric reads.
        decision: Name of the output that holds class scores; empty without classes.
    """

    choice: Samples
    proof: Samples
    choice_answers: dict[str, Array]
    proof_answers: dict[str, Array]
    metric: Metric | None
    output: str
    decision: str


class Candidate(msgspec.Struct, frozen=True):
    """A candidate and its measurements; `artifact`, `quality` and `parity` are None where it could not be made."""

    measured: Measured
    artifact: Artifact | None = None
    quality: Value | None = None
    parity: Parity | None = None


def make_candidate(
    backend: Backend,
    recipe: Recipe,
    *,
    graph: Graph,
    profile: TargetProfile,
    evidence: Evidence,
    budget: Budget,
    folder: Path,
    overhead: Overhead = NONE,
) -> Candidate:
    """Build one candidate and measure it. A candidate that cannot be made has a fault.

    A float32 artifact of the direct route that cannot be made, or answers otherwise, has a fault too: the lowered
    artifact exists beside it. A float artifact that answers as the float model does is marked `same`. Pruned artifacts
    are never marked: other inputs may activate the removed channels, so statistics judge them, as quantized artifacts.

    Args:
        backend: Builds the artifact.
        recipe: The recipe to build.
        graph: The graph that `recipe` starts from, with a batch of 1; the cost is estimated from it.
        profile: The target.
        evidence: Samples that judge the candidate, with the float model's answers.
        budget: Limits on the drop, the size and the cost.
        folder: Scratch folder.
        overhead: Run-time cost that the graph does not show.

    Raises:
        UnsupportedOpError: an operator cannot be converted for this backend in any precision.
        ParityError: the float32 artifact does not answer as the canonical graph does.
        ConversionError, RuntimeLoadError: the float32 artifact cannot be made or run.
    """
    cost = estimate(graph, profile, recipe, overhead)
    try:
        artifact = backend.build(recipe)
        answers, provider = _answers(artifact, evidence, folder / recipe.id)
        compared = _compare(backend, recipe, evidence, answers, provider)
    except (ConversionError, RuntimeLoadError) as error:
        return failed(recipe, cost, error)
    relative = {"float32": parity.FLOAT32_RELATIVE, "float16": parity.FLOAT16_RELATIVE}.get(recipe.precision, 0.0)
    limit = parity.tolerance({**evidence.choice_answers, **evidence.proof_answers}, relative)
    if recipe.precision == "float32" and compared.max_abs > limit and recipe.direct:
        return Candidate(Measured(recipe, 0, cost, fault=direct_fault(compared.max_abs, limit)))
    if _is_reference(recipe):
        parity.require(compared, limit)
    same = not recipe.quantized and not recipe.pruned and compared.max_abs <= limit and compared.agreement == 1.0
    moved = divergence(evidence.choice_answers, answers[0], evidence.decision)
    measured = Measured(recipe, len(artifact.data), cost, same=same, divergence=moved)
    quality = None
    if evidence.metric is not None:
        measured, quality = _judged(measured, evidence, answers, budget)
    return Candidate(measured, artifact, quality, compared)


def failed(recipe: Recipe, cost: Cost, error: EdgekitError) -> Candidate:
    """A candidate that could not be made because of `error`.

    Raises:
        EdgekitError: `error` itself, where it ends the conversion: the reference artifact cannot be made, an operator
            cannot be converted in any precision, or the error is not a fault of a candidate.
    """
    ends = _is_reference(recipe) or isinstance(error, UnsupportedOpError)
    if ends or not isinstance(error, ConversionError | RuntimeLoadError):
        raise error
    return Candidate(Measured(recipe, 0, cost, fault=str(error)))


def direct_fault(difference: float, limit: float) -> str:
    """Why a file of the direct route is refused."""
    return f"its answers differ by {difference:.3g} from the float model's; the limit is {limit:.3g}"


def _is_reference(recipe: Recipe) -> bool:
    """True for the reference: lowered float32 with all channels."""
    return recipe.precision == "float32" and not recipe.pruned and not recipe.direct


def open_artifact(artifact: Artifact, folder: Path) -> LogicalRuntime:
    """Open the artifact on this machine's CPU with its logical interface, as a device does.

    Raises:
        RuntimeLoadError: the runtime cannot load it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / artifact.file).write_bytes(artifact.data)
    digest = hashlib.sha256(artifact.data).hexdigest()
    manifest = Manifest(
        name="candidate",
        version="0.0.0",
        target="candidate",
        runtime=artifact.runtime,
        files=(FileEntry(artifact.file, ROLE_MODEL, len(artifact.data), digest, ()),),
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        golden=Golden(0, (), False),
        recipe=Recipe(),
        task=Task(),
    )
    return open_runtime(manifest, folder, providers=HOST_PROVIDERS)


def run_rows(runtime: LogicalRuntime, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Answers to `inputs` (N, ...) in chunks that bound memory."""
    rows = len(next(iter(inputs.values())))
    parts = [
        runtime.run({name: value[start : start + CHUNK_ROWS] for name, value in inputs.items()})
        for start in range(0, rows, CHUNK_ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def labels_for(samples: Samples, answers: Mapping[str, Array], metric: Metric, output: str) -> Array:
    """The values that the metric compares with: the labels, or for agreement the float model's answers."""
    return answers[output] if metric.name == AGREEMENT or samples.labels is None else samples.labels


def _answers(
    artifact: Artifact, evidence: Evidence, folder: Path
) -> tuple[tuple[dict[str, Array], dict[str, Array]], str]:
    runtime = open_artifact(artifact, folder)
    try:
        proof = run_rows(runtime, evidence.proof.inputs)
        one_split = evidence.choice is evidence.proof
        return (proof if one_split else run_rows(runtime, evidence.choice.inputs), proof), runtime.provider
    finally:
        runtime.close()


def _compare(
    backend: Backend,
    recipe: Recipe,
    evidence: Evidence,
    answers: tuple[dict[str, Array], dict[str, Array]],
    provider: str,
) -> Parity:
    """Parity on both splits together."""
    where = f"{platform.machine()}, {provider}"
    label = f"{backend.name} {recipe.id}"
    pairs = [(evidence.choice_answers, answers[0]), (evidence.proof_answers, answers[1])]
    parts = [
        parity.compare(expected, answer, runtime=label, where=where, decision=evidence.decision)
        for expected, answer in pairs
    ]
    rows = [len(evidence.choice), len(evidence.proof)]
    agreement = sum(p.agreement * n for p, n in zip(parts, rows, strict=True)) / sum(rows)
    exact = all(p.agreement == 1.0 for p in parts)
    return Parity(
        runtime=label,
        where=where,
        max_abs=max(p.max_abs for p in parts),
        agreement=1.0 if exact else agreement,
        equal=all(p.equal for p in parts),
        candidate=recipe.id,
    )


def _judged(
    measured: Measured, evidence: Evidence, answers: tuple[dict[str, Array], dict[str, Array]], budget: Budget
) -> tuple[Measured, Value]:
    metric, output = evidence.metric, evidence.output
    assert metric is not None
    scores, label_sets = [], []
    splits = ((evidence.choice, evidence.choice_answers), (evidence.proof, evidence.proof_answers))
    for (samples, expected), outputs in zip(splits, answers, strict=True):
        labels = labels_for(samples, expected, metric, output)
        scores.append((score(metric, expected[output], labels), score(metric, outputs[output], labels)))
        label_sets.append(labels)
    (choice_float, choice_candidate), (proof_float, proof_candidate) = scores
    method = likely_method(choice_float, choice_candidate, len(proof_float), budget.confidence)
    drop = drop_of(metric, proof_float, proof_candidate, label_sets[1], budget.confidence, method=method)
    choice_drop, rows = float((choice_float - choice_candidate).mean()), (len(choice_float), len(proof_float))
    judged = msgspec.structs.replace(
        measured,
        choice_drop=choice_drop,
        drop=drop,
        estimate=(choice_drop * rows[0] + drop.value * rows[1]) / sum(rows),
    )
    return judged, Value(metric.value(proof_candidate), len(proof_candidate))
