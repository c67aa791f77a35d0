"""Prepares one conversion: loads the model and the samples, makes the canonical graph, and runs the float model."""

from __future__ import annotations

import msgspec

from converters.candidates.candidate import Evidence, labels_for
from converters.candidates.test_set import TestSet, score_float_model
from converters.canonical import canonical_of
from converters.data.preprocessing import Steps, choose_steps
from converters.data.random_inputs import RandomInputs, plausible_samples
from converters.data.samples import Samples, Split, load_samples, split_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends import ONNX, Source, load_model
from converters.graph.graph import Graph
from converters.graph.task import detect_task, named_classes
from converters.plan import ConversionPlan
from converters.progress import StepCallback
from converters.quality.metrics import find_metric, score
from converters.quality.parity import Parity
from converters.report.report import SplitReport, Value
from edgekit.bundle.manifest import Task

PARITY_ROWS = 32
RANDOM_ROWS, RANDOM_SEED = 64, 1


class Prepared(msgspec.Struct, frozen=True):
    """The inputs that all targets of a conversion share.

    Attributes:
        source: The loaded model.
        graph: The canonical graph.
        fixed: The canonical graph with a batch of 1.
        calibration: The calibration split; None without data.
        split: Sizes and digest of the splits; None without data.
        evidence: Samples that judge candidates, with the float model's answers.
        test: The test samples; None without them.
        task: The task of the model.
        steps: Parity with the source after each step.
        preprocessing: Steps before and after the model; None without steps.
        channels: Number of channels of each layer before any was removed, by layer name.
        notes: What the user should know of the inputs, one sentence each.
    """

    source: Source
    graph: Graph
    fixed: Graph
    calibration: Samples | None
    split: SplitReport | None
    evidence: Evidence
    test: TestSet | None
    task: Task
    steps: tuple[Parity, ...]
    preprocessing: Steps | None
    channels: dict[str, int]
    notes: tuple[str, ...] = ()


def prepare(plan: ConversionPlan, child: TensorFlowProcess, step: StepCallback) -> Prepared:
    """Load the model and the samples of `plan`, and make the canonical graph. Raises as `convert`."""
    with step(f"load {plan.model.name}"):
        source = load_model(plan.model, child)
        specs = source.graph.logical_inputs
        preprocessing = choose_steps(plan.preprocess, source.graph, [plan.data, plan.test])
        processor = preprocessing.processor(specs, source.graph.logical_outputs) if preprocessing else None
    with step("read the samples"):
        classes = preprocessing.labels if preprocessing else ()
        data = load_samples(plan.data, specs, processor, classes) if plan.data is not None else None
        split = split_samples(data) if data is not None else None
        test = load_samples(plan.test, specs, processor, classes) if plan.test is not None else None
        drawn = RandomInputs(split.choice) if split else _random(source)
    choice = drawn.samples
    with step("simplify, with a parity check after each pass"):
        canonical = canonical_of(source, choice.take(slice(0, PARITY_ROWS)), prune=plan.prune != "none")
        graph = canonical.graph
    labels = split.proof.labels if split else None
    task = named_classes(detect_task(graph, labels), graph, data.classes if data else classes)
    with step("answers of the float model"):
        evidence = _evidence(plan, graph, task, split, choice)
        test_set = score_float_model(test, graph, evidence) if test is not None else None
    return Prepared(
        source=source,
        graph=graph,
        fixed=canonical.fixed,
        calibration=split.calibration if split else None,
        split=_split_report(split) if split else None,
        evidence=evidence,
        test=test_set,
        task=task,
        steps=canonical.steps,
        preprocessing=preprocessing,
        channels=canonical.channels,
        notes=drawn.notes,
    )


def _random(source: Source) -> RandomInputs:
    return plausible_samples(
        source.graph, source.answers, RANDOM_ROWS, RANDOM_SEED, negative_indices=source.format == ONNX
    )


def _evidence(plan: ConversionPlan, graph: Graph, task: Task, split: Split | None, choice: Samples) -> Evidence:
    proof = split.proof if split else choice
    answers = graph.run(choice.inputs)
    metric = find_metric(plan.metric, proof.labels, decisions=task.kind == "classification") if split else None
    evidence = Evidence(
        choice=choice,
        proof=proof,
        choice_answers=answers,
        proof_answers=graph.run(proof.inputs) if split else answers,
        metric=metric,
        output=task.output or graph.outputs[0].name,
        decision=task.output if task.kind == "classification" else "",
    )
    float_quality(evidence)  # so that labels that do not fit are reported before minutes of work
    return evidence


def float_quality(evidence: Evidence) -> Value | None:
    """Quality of the float model on the proof split; None without data. Raises as `score`."""
    if evidence.metric is None:
        return None
    labels = labels_for(evidence.proof, evidence.proof_answers, evidence.metric, evidence.output)
    scores = score(evidence.metric, evidence.proof_answers[evidence.output], labels)
    return Value(evidence.metric.value(scores), len(scores))


def _split_report(split: Split) -> SplitReport:
    return SplitReport(split.digest, len(split.calibration), len(split.choice), len(split.proof))
