"""Makes one candidate and measures it through the adapter that devices use."""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from converters.backends import Artifact, Backend
from converters.backends.tflite.operations import operations as tflite_operations
from converters.candidates.evidence import Evidence
from converters.cost.estimate import estimate
from converters.cost.file_estimate import core_of_target
from converters.cost.measuring.inputs import first_sample
from converters.cost.operations import onnx
from converters.cost.operations.operation import Operation
from converters.cost.overhead import NONE, Overhead
from converters.data.samples import Samples
from converters.data.stateful import answers_to
from converters.graph.graph import CHUNK_ROWS, Graph, attributes, label
from converters.graph.rounding import jumps
from converters.quality import parity
from converters.quality.divergence import divergence
from converters.quality.measured import Budget, Measured
from converters.quality.noise import row_noise
from converters.quality.parity import Parity
from converters.report.report import Value
from edgekit.bundle.manifest import ROLE_MODEL, Cost, FileEntry, Golden, Manifest, Task
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.sample_rows import run_samples
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError, EdgekitError, RuntimeLoadError, UnsupportedOpError
from edgekit.runtimes import LITERT, LogicalRuntime, open_runtime
from edgekit.tensors import Array

LOG = logging.getLogger(__name__)
RELATIVE = {"float32": parity.FLOAT32_RELATIVE, "float16": parity.FLOAT16_RELATIVE}
REPEATED = (
    "Layer {layer} writes to places that the data state, and runtimes differ where two writes meet, which ONNX leaves "
    "open. If the model adds there (scatter_add), export it with opset 16 or newer; older ones have no addition."
)
NOISY_ROWS = 32  # rows whose own noise is measured, where they are beyond the usual limits
JUMPY_ROWS = 512  # rows that are run with other rounding, where they are beyond these too
HOST_PROVIDERS = ("CPUExecutionProvider",)


class Candidate(msgspec.Struct, frozen=True):
    """A candidate and its measurements.

    `artifact`, `quality` and `parity` are None where it could not be made. `operations` are those of the file, from
    which its cost is estimated; None where the file does not show its work.
    """

    measured: Measured
    artifact: Artifact | None = None
    quality: Value | None = None
    parity: Parity | None = None
    operations: list[Operation] | None = None


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
        compared = _compare(backend, recipe, graph, evidence, answers, provider)
    except (ConversionError, RuntimeLoadError) as error:
        return failed(recipe, cost, error)
    if recipe.precision == "float32" and compared.excess > 1.0 and recipe.direct:
        return Candidate(Measured(recipe, 0, cost, fault=direct_fault(compared)))
    if _is_reference(recipe):
        single = _single_calls(backend, recipe, graph, evidence, artifact, folder)
        parity.require(single or compared, advice=advice_of(graph))
    same = not recipe.quantized and not recipe.pruned and compared.excess <= 1.0
    same = same and (compared.agreement == 1.0 or _agrees_but_for_ties(recipe, evidence, answers[0]))
    moved = divergence(evidence.choice_answers, answers[0], evidence.decision, evidence.looked_at)
    measured = Measured(recipe, len(artifact.data), cost, same=same, divergence=moved)
    quality = None
    if evidence.judged:
        judgement = evidence.judgement(*answers, budget.confidence)
        measured = msgspec.structs.replace(measured, judgement=judgement)
        first = judgement.outputs[0]
        quality = Value(first.value, first.drop.n)
    operations = None
    if core_of_target(profile):
        operations = operations_of(artifact, evidence.choice.inputs, folder / recipe.id)
    return Candidate(measured, artifact, quality, compared, operations)


def advice_of(graph: Graph) -> str:
    """Advice where the reference has other answers: ONNX leaves open which of two writes to one place stays."""
    writes = [node for node in graph.nodes if node.op_type in ("ScatterElements", "ScatterND", "Scatter")]
    replacing = [label(node) for node in writes if attributes(node).get("reduction", "none") in ("none", b"none")]
    return REPEATED.format(layer=replacing[0]) if replacing else parity.FAULT


def _agrees_but_for_ties(recipe: Recipe, evidence: Evidence, answers: dict[str, Array]) -> bool:
    """True where there are no data, and decisions on random inputs change at ties only: these mean nothing there."""
    if evidence.judged:
        return False
    expected, name = evidence.choice_answers, evidence.decision
    limits = parity.tolerances(expected, RELATIVE[recipe.precision], evidence.noise)
    return parity.clear_agreement(expected[name], answers[name], limits[name])


def failed(recipe: Recipe, cost: Cost, error: EdgekitError) -> Candidate:
    """A candidate that could not be made because of `error`.

    Raises:
        EdgekitError: `error` itself, where it ends the conversion: the reference artifact cannot be made, an operator
            cannot be converted in any precision, or the error is not a fault of a candidate.
    """
    ends = _is_reference(recipe) or isinstance(error, UnsupportedOpError)
    if ends or not isinstance(error, ConversionError | RuntimeLoadError):
        raise error
    if error.foreign_text:
        LOG.info("candidate %s: %s: %s", recipe.id, error, error.foreign_text)
    return Candidate(Measured(recipe, 0, cost, fault=str(error)))


def direct_fault(compared: Parity) -> str:
    """Why a file of the direct route is refused."""
    return (
        f"its output {compared.output} differs by {compared.difference:.3g} from the float model's; "
        f"the limit is {compared.limit:.3g}"
    )


def _is_reference(recipe: Recipe) -> bool:
    """True for the reference: lowered float32 with all channels."""
    return recipe.precision == "float32" and not recipe.pruned and not recipe.direct


def operations_of(artifact: Artifact, samples: Mapping[str, Array], folder: Path) -> list[Operation] | None:
    """The operators of an artifact; None where they do not show its work. `samples` (N, ...) are inputs of a run."""
    if artifact.runtime == LITERT:
        return tflite_operations(artifact.data)
    runtime = open_artifact(artifact, folder)
    try:
        inputs = first_sample(runtime, artifact.inputs, samples)
    finally:
        runtime.close()
    try:
        return onnx.operations(folder / artifact.file, inputs)
    except RuntimeLoadError:  # it runs, but not with the settings of another processor
        return None


def open_artifact(artifact: Artifact, folder: Path) -> LogicalRuntime:
    """Open the artifact on this machine's CPU with its logical interface, as a device does.

    Raises:
        RuntimeLoadError: the runtime cannot load it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = artifact.data
    (folder / artifact.file).write_bytes(data)
    manifest = Manifest(
        name="candidate",
        version="0.0.0",
        target="candidate",
        runtime=artifact.runtime,
        files=(FileEntry(artifact.file, ROLE_MODEL, len(data), hashlib.sha256(data).hexdigest(), ()),),
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        golden=Golden(0, (), False),
        recipe=Recipe(),
        task=Task(),
    )
    del data
    return open_runtime(manifest, folder, providers=HOST_PROVIDERS)


def run_in_streams(runtime: LogicalRuntime, samples: Samples, rows: int = CHUNK_ROWS) -> dict[str, Array]:
    """Answers to samples, without state; a model with state runs each stream from the zero state."""
    return answers_to(functools.partial(run_rows, runtime, rows=rows), samples)


def run_rows(runtime: LogicalRuntime, inputs: Mapping[str, Array], rows: int = CHUNK_ROWS) -> dict[str, Array]:
    """Answers (N, ...) to samples `inputs` (N, ...), `rows` at once."""
    return run_samples(runtime.run, runtime.inputs, runtime.outputs, inputs, rows=rows)


def _single_calls(
    backend: Backend, recipe: Recipe, graph: Graph, evidence: Evidence, artifact: Artifact, folder: Path
) -> Parity | None:
    """Parity of single calls of a model with state, from the float model's states; None for other models.

    Over a stream, the rounding of correct float models adds up. That is no fault of the conversion.
    """
    if not evidence.choice.feeds:
        return None
    plain = msgspec.structs.replace(
        evidence,
        choice=msgspec.structs.replace(evidence.choice, feeds={}),
        proof=msgspec.structs.replace(evidence.proof, feeds={}),
    )
    answers, provider = _answers(artifact, plain, folder / recipe.id)
    return _compare(backend, recipe, graph, plain, answers, provider)


def _answers(
    artifact: Artifact, evidence: Evidence, folder: Path
) -> tuple[tuple[dict[str, Array], dict[str, Array]], str]:
    runtime = open_artifact(artifact, folder)
    try:
        proof = run_in_streams(runtime, evidence.proof, evidence.rows)
        one_split = evidence.choice is evidence.proof
        choice = proof if one_split else run_in_streams(runtime, evidence.choice, evidence.rows)
        return (choice, proof), runtime.provider
    finally:
        runtime.close()


def _compare(
    backend: Backend,
    recipe: Recipe,
    graph: Graph,
    evidence: Evidence,
    answers: tuple[dict[str, Array], dict[str, Array]],
    provider: str,
) -> Parity:
    """Parity on both splits together, within the limits of this precision and of the float model's noise."""
    relative = RELATIVE.get(recipe.precision)
    pairs = [
        (evidence.choice, evidence.choice_answers, answers[0]),
        (evidence.proof, evidence.proof_answers, answers[1]),
    ]
    parts = []
    for samples, expected, answer in pairs[:1] if evidence.choice is evidence.proof else pairs:
        compare = functools.partial(
            parity.compare,
            expected,
            answer,
            runtime=f"{backend.name} {recipe.id}",
            where=f"{platform.machine()}, {provider}",
            decision=evidence.decision,
        )
        limits = parity.tolerances(expected, relative, evidence.noise) if relative is not None else None
        compared = compare(limits=limits)
        for wider in (_row_limits, _jump_limits):
            if compared.excess > 1.0 and _is_reference(recipe) and limits is not None:
                limits = wider(graph, samples, expected, answer, limits)
                compared = compare(limits=limits)
        parts.append((compared, len(samples)))
    rows = sum(count for _, count in parts)
    agreement = sum(part.agreement * count for part, count in parts) / rows
    nearest = max((part for part, _ in parts), key=lambda part: part.excess)
    return msgspec.structs.replace(
        nearest,
        max_abs=max(part.max_abs for part, _ in parts),
        agreement=1.0 if all(part.agreement == 1.0 for part, _ in parts) else agreement,
        equal=all(part.equal for part, _ in parts),
        candidate=recipe.id,
    )


def _row_limits(
    graph: Graph,
    samples: Samples,
    expected: Mapping[str, Array],
    answers: Mapping[str, Array],
    limits: Mapping[str, Array],
) -> dict[str, Array]:
    """The limits with those of single rows added: the rows beyond their limits, by the noise of the model on them.

    The noise differs between rows, and the first measurement took few of them.
    """
    rows = _rows_beyond(expected, answers, limits)[:NOISY_ROWS]
    own = {name: value[rows] for name, value in expected.items()}
    noise = row_noise(graph.run, samples.take(rows).inputs, own)  # of single calls, from the float model's states
    result = {name: np.broadcast_to(limits[name], value.shape).copy() for name, value in expected.items()}
    for name, value in noise.items():
        result[name][rows] = np.maximum(result[name][rows], parity.NOISE_MULTIPLE * value)
    return result


def _jump_limits(
    graph: Graph,
    samples: Samples,
    expected: Mapping[str, Array],
    answers: Mapping[str, Array],
    limits: Mapping[str, Array],
) -> dict[str, Array]:
    """The limits with those of elements that jump with the rounding: decisions between nearly equal values.

    The peaks of a heat map, ranks and rounded answers are such. All other elements keep their limits.
    """
    rows = _rows_beyond(expected, answers, limits)[:JUMPY_ROWS]
    result = {name: np.broadcast_to(limits[name], value.shape).copy() for name, value in expected.items()}
    own = {name: value[rows] for name, value in expected.items()}
    usual = {name: value[rows] for name, value in result.items()}
    jumping = jumps(graph, samples.take(rows).inputs, own, usual)
    for name, limit in parity.with_noise(usual, jumping).items():
        result[name][rows] = limit
    return result


def _rows_beyond(expected: Mapping[str, Array], answers: Mapping[str, Array], limits: Mapping[str, Array]) -> Array:
    """The rows with a difference beyond its limit, the farthest first."""
    beyond = [
        (np.abs(answers[name].astype(np.float64) - value) / limits[name]).reshape(len(value), -1).max(axis=1, initial=0)
        for name, value in expected.items()
    ]
    excess = np.max(beyond, axis=0)
    rows = np.argsort(-excess, kind="stable")
    result: Array = rows[excess[rows] > 1.0]
    return result
