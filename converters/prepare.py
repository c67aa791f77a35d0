"""Prepares one conversion: loads the model and the samples, makes the canonical graph, and runs the float model."""

from __future__ import annotations

import functools

import msgspec

from converters.candidates.evidence import Evidence
from converters.candidates.outputs import OutputOptions, decision_output, judged_outputs
from converters.candidates.test_set import TestSet, score_float_model
from converters.canonical import canonical_of
from converters.data.preprocessing import Steps, choose_steps, with_after
from converters.data.random_inputs import RandomInputs, plausible_samples
from converters.data.repeats import different_samples, repeat_notes
from converters.data.samples import (
    CALIBRATION_SHARE,
    Samples,
    Split,
    calibration_share,
    data_arrays,
    load_samples,
    split_samples,
)
from converters.data.stateful import stream_note, visible, with_states
from converters.framework_process import TensorFlowProcess
from converters.frontends import ONNX, Source, load_model
from converters.graph.graph import Graph
from converters.graph.state import state_hint, with_state
from converters.graph.task import detect_task, named_classes, parse_task
from converters.machine import return_memory
from converters.noise import Noise
from converters.plan import ConversionPlan
from converters.progress import StepCallback
from converters.quality.baseline import baseline_note
from converters.quality.judging import JudgedOutput, Stratum, classes_of, groups_of
from converters.quality.metrics import ACCURACY, AUC, score
from converters.quality.parity import Parity
from converters.report.report import SplitReport, TaskReport, Value
from edgekit.bundle.manifest import Task
from edgekit.bundle.spread import is_constant
from edgekit.errors import DataError
from edgekit.tensors import Array

PARITY_ROWS, LEAST_PARITY_ROWS = 32, 8
PARITY_MACS = 32e9  # multiply-adds of the rows of one parity check: those of large networks would take minutes
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
        noise: The noise of the source model.
        task_report: The task, and the share of samples that a device would send to the cloud tier.
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
    noise: Noise
    task_report: TaskReport
    notes: tuple[str, ...] = ()


def prepare(plan: ConversionPlan, child: TensorFlowProcess, step: StepCallback) -> Prepared:
    """Load the model and the samples of `plan`, and make the canonical graph. Raises as `convert`."""
    with step(f"load {plan.model.name}"):
        source = load_source(plan, child)
        specs, interface = source.graph.sample_inputs, source.graph.interface
        chosen = choose_steps(plan.preprocess, source.graph, [plan.data, plan.test])
        preprocessing = with_after(chosen, source.after)
        processor = preprocessing.processor(specs, source.graph.sample_outputs) if preprocessing else None
    with step("read the samples"):
        classes = preprocessing.labels if preprocessing else ()
        data = load_samples(plan.data, specs, processor, classes, interface) if plan.data is not None else None
        different = different_samples(data) if data is not None else None
        split = _split(plan, different) if different is not None else None
        repeats = repeat_notes(data, different) if data is not None and different is not None else []
        test = load_samples(plan.test, specs, processor, classes, interface) if plan.test is not None else None
        drawn = RandomInputs(split.choice) if split else _random(source)
    choice = drawn.samples
    if interface.state:
        with step("states of the float model"):
            split, test, choice = _with_states(source.graph, split, test, choice)
    with step("simplify, with a parity check after each pass"):
        canonical = canonical_of(source, choice.take(slice(0, parity_rows(source.graph))), prune=plan.prune != "none")
        graph = canonical.graph
        return_memory()
    labels = split.proof.labels if split else None
    with step("answers of the float model"):
        answers = graph.run(choice.inputs)
        detected = detect_task(graph, labels, answers, parse_task(plan.task) if plan.task else None)
        task = named_classes(detected.task, graph, data.classes if data else classes)
        evidence = _evidence(plan, graph, task, split, choice, answers, canonical.noise.by_output)
        test_set = None
        if test is not None:
            test_set = score_float_model(test.with_labels_of(_labelled(graph, task, choice)), graph, evidence)
    return Prepared(
        source=source.once_read(graph),
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
        noise=canonical.noise,
        task_report=TaskReport.of(task, evidence.choice_answers),
        notes=(
            *filter(None, [detected.note]),
            *interface.notes,
            *drawn.notes,
            *repeats,
            *_constant_notes(evidence, split),
            *_baseline_notes(evidence),
            *hard_notes(split.proof if split else None, test),
            *_state_notes(source.graph, split),
        ),
    )


def parity_rows(graph: Graph) -> int:
    """How many rows check that a step of the conversion keeps the answers: fewer for a large network."""
    macs = max(sum(graph.macs.values()), 1)
    return max(LEAST_PARITY_ROWS, min(PARITY_ROWS, int(PARITY_MACS / macs)))


def _split(plan: ConversionPlan, data: Samples) -> Split:
    """The splits of the data. Without a wish for proof, what the proof does not need is for calibration."""
    drops = (plan.budget.max_drop, *plan.budget.max_drops.values())
    shares = [calibration_share(len(data), drop, plan.budget.confidence) for drop in drops]
    return split_samples(data, min(shares) if plan.accept_unproven else CALIBRATION_SHARE)


def _constant_notes(evidence: Evidence, split: Split | None) -> list[str]:
    """Outputs that answer all samples of the data alike; for random inputs these are told where they are drawn."""
    return [
        f"output {name}: the float model gives the same answer to every sample, up to rounding; what is proven of it "
        "says little about other inputs"
        for name, answers in evidence.choice_answers.items()
        if split is not None and answers.dtype.kind == "f" and is_constant(answers)
    ]


def _baseline_notes(evidence: Evidence) -> list[str]:
    if not evidence.judged:
        return []
    first = evidence.judged[0]
    labels = evidence.proof.labels_of(first.name)
    note = baseline_note(first.metric.name, labels, _float_value(evidence, first).value)
    return [note] if note else []


def _state_notes(graph: Graph, split: Split | None) -> list[str]:
    return [note for note in (state_hint(graph), stream_note(split.proof) if split else "") if note]


def _with_states(
    graph: Graph, split: Split | None, test: Samples | None, choice: Samples
) -> tuple[Split | None, Samples | None, Samples]:
    """The same samples with the states of the float model, from the beginning of each stream."""
    fill = functools.partial(with_states, run=graph.run, specs=graph.sample_inputs, feeds=graph.interface.state)
    if split is not None:
        parts = map(fill, (split.calibration, split.choice, split.proof))
        split = Split(split.digest, *parts)
    return split, fill(test) if test is not None else None, split.choice if split is not None else fill(choice)


def load_source(plan: ConversionPlan, child: TensorFlowProcess) -> Source:
    """Load the model of `plan`, with the sizes that its options and its data state. Raises as `convert`."""
    arrays = data_arrays(plan.data) if plan.data is not None else {}
    source = load_model(plan.model, child, msgspec.structs.replace(plan.stated, data=arrays), signature=plan.signature)
    return msgspec.structs.replace(source, graph=with_state(source.graph, plan.stated.state))


def _random(source: Source) -> RandomInputs:
    return plausible_samples(
        source.graph, source.answers, RANDOM_ROWS, RANDOM_SEED, negative_indices=source.format == ONNX
    )


def _evidence(
    plan: ConversionPlan,
    graph: Graph,
    task: Task,
    split: Split | None,
    choice: Samples,
    raw: dict[str, Array],
    noise: dict[str, Array],
) -> Evidence:
    options = OutputOptions(plan.metric, plan.metrics, plan.ignore_outputs, plan.budget.max_drops)
    names = _seen_outputs(graph, choice)
    output = decision_output(names, task, options)
    labelled = _labelled(graph, task, choice)
    choice, proof = (samples.with_labels_of(labelled) for samples in (choice, split.proof if split else choice))
    answers = visible(choice, raw)
    evidence = Evidence(
        choice=choice,
        proof=proof if split else choice,
        choice_answers=answers,
        proof_answers=visible(proof, graph.run(proof.inputs)) if split else answers,
        judged=judged_outputs({name: answers[name] for name in names}, task, output, proof, options) if split else (),
        output=output,
        decision=output if task.kind == "classification" and task.output == output else "",
        ignored=plan.ignore_outputs,
        noise=noise,
        rows=graph.rows_at_once(),
    )
    judged = [one.fitted_to(evidence.choice_answers, evidence.proof_answers) for one in evidence.judged]
    evidence = msgspec.structs.replace(evidence, judged=tuple(judged))
    for one in evidence.judged:  # so that labels that do not fit are reported before minutes of work
        _float_value(evidence, one)
    strata = _strata(evidence, task)
    if plan.budget.max_drop_any_class is not None and split and not strata:
        raise DataError(
            "--max-drop-any-class needs classes or groups, and the decision output has no class scores",
            advice="Give groups as an array 'group' in the data file, or leave the option out.",
        )
    return msgspec.structs.replace(evidence, strata=tuple(strata))


def _seen_outputs(graph: Graph, samples: Samples) -> list[str]:
    """The outputs that clients see: all but those that feed a state."""
    return [spec.name for spec in graph.outputs if spec.name not in samples.feeds.values()]


def _labelled(graph: Graph, task: Task, samples: Samples) -> str:
    """The output that the labels ``y`` belong to: the one with class scores, or the first."""
    return task.output or _seen_outputs(graph, samples)[0]


def _strata(evidence: Evidence, task: Task) -> list[Stratum]:
    if not evidence.judged or evidence.judged[0].metric.name == AUC:
        return []
    first, proof = evidence.judged[0], evidence.proof
    classes = classes_of(
        first.metric,
        proof.labels_of(first.name),
        evidence.proof_answers[first.name],
        task.labels,
        decisions=bool(evidence.decision) or first.metric.name == ACCURACY,
    )
    return [*classes, *groups_of(proof.groups)]


def float_quality(evidence: Evidence) -> Value | None:
    """Quality of the float model's decision output on the proof split; None without data. Raises as `score`."""
    return _float_value(evidence, evidence.judged[0]) if evidence.judged else None


def _float_value(evidence: Evidence, one: JudgedOutput) -> Value:
    labels = one.labels(evidence.proof.labels_of(one.name), evidence.proof_answers)
    scores = score(one.metric, evidence.proof_answers[one.name], labels)
    return Value(one.metric.value(scores), len(scores))


def _split_report(split: Split) -> SplitReport:
    return SplitReport(split.digest, len(split.calibration), len(split.choice), len(split.proof), split.proof.hard)


def hard_notes(proof: Samples | None, test: Samples | None) -> list[str]:
    """A warning of samples that devices kept because their model is weak there: they train well and prove nothing."""
    found = [(word, samples) for word, samples in (("proof", proof), ("test", test)) if samples and samples.hard]
    return [
        f"{sum(samples.hard.values())} of {len(samples)} samples of the {word} were kept by devices as "
        f"{', '.join(samples.hard)}: quality and drops say nothing about all answers of a device; to prove them, give "
        "samples that were kept by chance (edgekit device command ID collect --share X)"
        for word, samples in found
    ]
