"""From a model file to one proven bundle per target: load, simplify, make candidates, choose, prove, write."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from converters.backends import Artifact, ConversionContext, leads_to
from converters.backends.layers import search_macs
from converters.bundle import (
    bundle_files,
    golden_bytes,
    golden_rows,
    measure_golden,
    require_place,
    with_files,
    write_bundle,
)
from converters.cache import Cache, CacheScope, origin_of, this_processor
from converters.candidates.artifact_contents import contents_of
from converters.candidates.builder import CandidateBuilder
from converters.candidates.candidate import Candidate, Evidence, labels_for
from converters.candidates.direct_route import consider, with_direct
from converters.candidates.pruning import pruning_of
from converters.candidates.runtime_matrix import RuntimeMatrix, run_variants, sums_exactly
from converters.candidates.strategy import pruned_kinds
from converters.candidates.task_context import TaskContext
from converters.candidates.task_pool import TaskPool
from converters.candidates.test_set import TestSet, hold_out, tested
from converters.canonical import canonical_of
from converters.cost.estimate import memory_mib
from converters.data.preprocessing import Steps, choose_steps
from converters.data.samples import Samples, Split, load_samples, random_samples, split_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends import Source, load_model
from converters.graph.graph import Graph, digest_of
from converters.graph.task import detect_task, named_classes
from converters.plan import ConversionPlan
from converters.progress import ConversionCallbacks, StepCallback
from converters.quality.metrics import find_metric, score
from converters.quality.parity import Parity
from converters.quality.selection import Choice, choose
from converters.report.pruning import Pruning
from converters.report.report import (
    ArtifactContents,
    CandidateReport,
    FloatReport,
    LayerReport,
    Report,
    RouteReport,
    SourceReport,
    SplitReport,
    TestReport,
    Value,
    report_html,
    report_json,
)
from converters.up_to_date import made_from_others
from edgekit.bundle.manifest import Golden, Manifest, Quality, Task
from edgekit.bundle.targets import TargetProfile
from edgekit.versions import versions_of

PARITY_ROWS = 32
MACS_A_SECOND = 5e9  # of a search by `search_macs`, on one core: measured on a network of 700,000 parameters
RANDOM_ROWS, RANDOM_SEED = 64, 1
PACKAGES = ("edgekit", "ai-edge-litert", "ai-edge-quantizer", "keras", "numpy", "onnx", "onnxruntime", "onnxslim")
TENSORFLOW_PACKAGES = ("tensorflow", "tensorflow-cpu", "tf2onnx")


def run_plan(
    plan: ConversionPlan,
    *,
    callbacks: ConversionCallbacks | None = None,
    child: TensorFlowProcess | None = None,
    cache: Cache | None = None,
) -> list[Report]:
    """Do what `plan` says; raises as `convert`. With `child`, that process of TensorFlow is used, and left open."""
    callbacks = callbacks or ConversionCallbacks()
    step = callbacks.step
    for profile, _ in plan.profiles:  # what stands in the way is told before minutes of work
        require_place(plan.output, plan.bundle_name(profile))
    with contextlib.ExitStack() as stack:
        child = child or stack.enter_context(TensorFlowProcess())
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-convert-"))
        prepared = _prepare(plan, child, step)
        context = ConversionContext(prepared.graph, prepared.fixed, prepared.calibration, child, Path(scratch))
        cache_scope = _cache_scope(plan, prepared, cache)
        task_context = TaskContext(context, prepared.evidence, plan.budget)
        pool = stack.enter_context(TaskPool(task_context))
        if plan.recipe is None and prepared.calibration is not None:
            pool.expect(search_macs(prepared.fixed, len(prepared.calibration)) / MACS_A_SECOND)
        pruning = _pruning(plan, prepared, context, step)
        route = consider(plan.recipe, plan.profiles, prepared.source, context, prepared.evidence, cache_scope, step)
        builder = CandidateBuilder(task_context, pool, callbacks, cache_scope)
        done = [
            _one_target(plan, prepared, context, builder, pruning, profile, runtime, route, step)
            for profile, runtime in plan.profiles
        ]
    written = []
    for report, manifest, files in done:
        other = made_from_others(plan.output / report.bundle, manifest, report)
        with step(f"write {report.bundle}"):
            folder = write_bundle(plan.output, report.bundle, manifest, files)
        callbacks.written(folder)
        if other:
            callbacks.note(f"replaced the bundle that was in {folder}: {other}")
        written.append(msgspec.structs.replace(report, bundle=str(folder)))
    return written


class Prepared(msgspec.Struct, frozen=True):
    """What all targets share: the source, the canonical graph, the evidence, and how it came about.

    `channels` are those of each layer before any was taken away.
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
    before: Steps | None
    channels: dict[str, int]


def _prepare(plan: ConversionPlan, child: TensorFlowProcess, step: StepCallback) -> Prepared:
    with step(f"load {plan.model.name}"):
        source = load_model(plan.model, child)
        specs = source.graph.logical_inputs
        before = choose_steps(plan.preprocess, source.graph, [plan.data, plan.test])
        processor = before.processor(specs, source.graph.logical_outputs) if before else None
    with step("read the samples"):
        classes = before.labels if before else ()
        data = load_samples(plan.data, specs, processor, classes) if plan.data is not None else None
        split = split_samples(data) if data is not None else None
        test = load_samples(plan.test, specs, processor, classes) if plan.test is not None else None
    choice = split.choice if split else random_samples(specs, RANDOM_ROWS, RANDOM_SEED)
    with step("simplify, with a parity check after each pass"):
        made = canonical_of(source, choice.take(slice(0, PARITY_ROWS)), prune=plan.prune != "none")
        graph = made.graph
    labels = split.proof.labels if split else None
    task = named_classes(detect_task(graph, labels), graph, data.classes if data else classes)
    with step("answers of the float model"):
        evidence = _evidence(plan, graph, task, split, choice)
        held = hold_out(test, graph, evidence) if test is not None else None
    return Prepared(
        source=source,
        graph=graph,
        fixed=made.fixed,
        calibration=split.calibration if split else None,
        split=_split_report(split) if split else None,
        evidence=evidence,
        test=held,
        task=task,
        steps=made.steps,
        before=before,
        channels=made.channels,
    )


def _pruning(plan: ConversionPlan, prepared: Prepared, context: ConversionContext, step: StepCallback) -> Pruning:
    if plan.prune == "none":
        return Pruning(plan.prune, sum(prepared.channels.values()))
    evidence = prepared.evidence
    with step("look for dead channels"):
        others = [evidence.choice, evidence.proof] if prepared.split else []
        found = pruning_of(context, prepared.channels, others, plan.budget.confidence)
        wanted = found.found if plan.recipe is None else plan.recipe.pruned
        context.start(context.fixed, pruned=wanted)  # here, so that copies in other processes need not
        return found


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
    _float_quality(evidence)  # labels that do not fit are told before minutes of work
    return evidence


def _float_quality(evidence: Evidence) -> Value | None:
    """Of the float model on the proof split; None without data. Raises as `score`."""
    if evidence.metric is None:
        return None
    labels = labels_for(evidence.proof, evidence.proof_answers, evidence.metric, evidence.output)
    scores = score(evidence.metric, evidence.proof_answers[evidence.output], labels)
    return Value(evidence.metric.value(scores), len(scores))


def _cache_scope(plan: ConversionPlan, prepared: Prepared, cache: Cache | None) -> CacheScope:
    """What earlier runs made of the same graph and samples with the same tools, on a processor of the same kind."""
    if plan.metric is not None and ":" in plan.metric:  # a function of the user's, whose code may have changed
        return CacheScope()
    evidence = prepared.evidence
    rows: list[Any] = []
    for samples in (prepared.calibration, evidence.choice, evidence.proof):
        rows += [samples.labels, *(samples.inputs[name] for name in sorted(samples.inputs))] if samples else [None]
    graphs = digest_of(prepared.graph), digest_of(prepared.fixed)
    judged = plan.metric, plan.budget.confidence, evidence.output, evidence.decision
    where = _tools(prepared.source.format), this_processor()
    return CacheScope(cache, origin_of(*graphs, *judged, *where, *rows))


Done = tuple[Report, Manifest, dict[str, tuple[str, bytes]]]


def _one_target(
    plan: ConversionPlan,
    prepared: Prepared,
    context: ConversionContext,
    builder: CandidateBuilder,
    pruning: Pruning,
    profile: TargetProfile,
    runtime: str,
    route: RouteReport | None,
    step: StepCallback,
) -> Done:
    folder = context.folder / profile.name
    route = route if leads_to(profile, runtime) else None
    kinds = plan.recipes(profile, runtime)
    if plan.recipe is None and route is not None:
        kinds = with_direct(kinds, route, context)
    if plan.recipe is None and pruning.found:
        kinds = pruned_kinds(kinds)
    found = builder.candidates(profile, runtime, kinds, search=plan.recipe is None)
    choice = choose([c.measured for c in found], plan.budget, aim=plan.aim, accept_unproven=plan.accept_unproven)
    chosen = next(c for c in found if c.measured.recipe.id == choice.chosen)
    assert chosen.artifact is not None  # a candidate with a fault is never chosen
    with step(f"{profile.name}: prove {choice.chosen}"):
        test = tested(prepared.test, chosen.artifact, folder / "test") if prepared.test else None
        report = _report(plan, prepared, profile, runtime, found, choice, test)
        contents = contents_of(chosen.artifact, folder / "contents")
        scores = builder.sensitivity(profile, runtime, pruned=any(recipe.pruned for recipe in kinds))
        layers = tuple(
            LayerReport(one.layer.name, one.layer.operator, one.int8, one.int4)
            for one in sorted(scores, key=lambda one: -one.int8)
        )
        graph = context.start(context.fixed, pruned=chosen.measured.recipe.pruned)
        ways = _ways(prepared, chosen, graph, contents, folder / "matrix")
        report = msgspec.structs.replace(
            report,
            contents=contents,
            notes=(*chosen.artifact.notes, *ways.left),
            sensitivity=layers,
            pruning=pruning,
            parity=(*report.parity, *ways.parity),
            route=route,
        )
        demands = _demands(graph, chosen.artifact)
        manifest, golden = _manifest(plan, prepared, profile, chosen, report, demands, folder)
        files = bundle_files(chosen.artifact, golden, report_json(report), report_html(report))
        files.update(prepared.before.bundle_files() if prepared.before else {})
    return report, with_files(manifest, files), files


def _ways(
    prepared: Prepared, chosen: Candidate, graph: Graph, contents: ArtifactContents, folder: Path
) -> RuntimeMatrix:
    """The chosen artifact, made of `graph`, through every runtime that is installed here."""
    evidence, artifact = prepared.evidence, chosen.artifact
    assert artifact is not None
    return run_variants(
        artifact,
        evidence.choice.inputs,
        evidence.choice_answers,
        exact=sums_exactly(artifact, chosen.measured.recipe, contents),
        macs=sum(graph.macs.values()),
        decision=evidence.decision,
        folder=folder,
    )


def _report(
    plan: ConversionPlan,
    prepared: Prepared,
    profile: TargetProfile,
    runtime: str,
    found: list[Candidate],
    choice: Choice,
    test: TestReport | None,
) -> Report:
    evidence, graph = prepared.evidence, prepared.graph
    rows = tuple(
        CandidateReport(
            c.measured.recipe.id,
            c.measured.recipe,
            c.measured.bytes,
            c.quality,
            c.measured.drop,
            c.measured.cost,
            *choice.verdicts[c.measured.recipe.id],
        )
        for c in found
    )
    return Report(
        name=plan.name,
        version=plan.version,
        target=profile.name,
        runtime=runtime,
        bundle=plan.bundle_name(profile),
        source=SourceReport(prepared.source.path.name, prepared.source.sha256, prepared.source.format),
        metric=evidence.metric.name if evidence.metric else "none",
        data="given" if prepared.split else "random",
        split=prepared.split,
        aim=plan.aim,
        budget=plan.budget,
        float_=FloatReport(len(graph.to_bytes()), _float_quality(evidence)),
        candidates=rows,
        chosen=choice.chosen,
        proven=choice.proven,
        test=test,
        parity=(*prepared.steps, *(c.parity for c in found if c.parity is not None)),
        tools=_tools(prepared.source.format),
        preprocess=prepared.before.source if prepared.before else "none",
    )


def _manifest(
    plan: ConversionPlan,
    prepared: Prepared,
    profile: TargetProfile,
    chosen: Candidate,
    report: Report,
    demands: dict[str, Any],
    folder: Path,
) -> tuple[Manifest, bytes]:
    artifact, recipe = chosen.artifact, chosen.measured.recipe
    assert artifact is not None
    evidence = prepared.evidence
    picked = golden_rows(evidence.choice_answers, evidence.decision)
    rows = evidence.choice.take(picked).inputs
    expected = {name: value[picked] for name, value in evidence.choice_answers.items()}
    quality = None
    if chosen.quality is not None and report.float_.quality is not None:
        float_value = report.float_.quality.value
        quality = Quality(report.metric, chosen.quality.value, float_value, chosen.quality.n, report.proven)
    manifest = Manifest(
        name=plan.name,
        version=plan.version,
        target=profile.name,
        runtime=artifact.runtime,
        files=(),
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        golden=Golden(0, (), False),
        recipe=recipe,
        task=prepared.task,
        quality=quality,
        cost=chosen.measured.cost,
        requires=demands,
        source_sha256=prepared.source.sha256,
        tools=report.tools,
        processing=prepared.before.processing if prepared.before else msgspec.UNSET,
    )
    golden = measure_golden(artifact, recipe, manifest, rows, expected, profile=profile, folder=folder / "golden")
    return msgspec.structs.replace(manifest, golden=golden), golden_bytes(rows, expected)


def _demands(graph: Graph, artifact: Artifact) -> dict[str, Any]:
    """What a device must have. No processor is named: these artifacts run on any that has the runtime."""
    demands: dict[str, Any] = {"memory_mib": memory_mib(graph, len(artifact.data))}
    if artifact.runtime_version:
        demands["runtime_version"] = artifact.runtime_version
    return demands


def _split_report(split: Split) -> SplitReport:
    return SplitReport(split.digest, len(split.calibration), len(split.choice), len(split.proof))


def _tools(source_format: str) -> dict[str, str]:
    names = PACKAGES if source_format == "onnx" else (*PACKAGES, *TENSORFLOW_PACKAGES)
    return versions_of(names)  # tensorflow or tensorflow-cpu, not both
