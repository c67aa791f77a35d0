"""The main flow of a conversion: load, simplify, make candidates, choose, prove, and write one bundle per target."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from converters.backends import Artifact, ConversionContext, direct_route_fits
from converters.backends.layers import search_macs
from converters.bundle import (
    GOLDEN_ROWS,
    bundle_files,
    golden_bytes,
    golden_rows,
    measure_golden,
    require_writable,
    with_files,
    write_bundle,
)
from converters.cache import Cache, CacheScope, origin_of, this_processor
from converters.candidates.artifact_contents import contents_of
from converters.candidates.builder import CandidateBuilder, load_libraries
from converters.candidates.candidate import Candidate
from converters.candidates.direct_route import evaluate_direct_route, require_targets, with_direct
from converters.candidates.levels import Levels, channel_report
from converters.candidates.pruning import find_dead_channels
from converters.candidates.recount import recount
from converters.candidates.runtime_matrix import RuntimeMatrix, run_variants, sums_exactly
from converters.candidates.strategy import base_of, pruned_kinds
from converters.candidates.task_context import TaskContext
from converters.candidates.task_pool import ProcessCosts, TaskPool
from converters.candidates.test_set import score_artifact
from converters.cost.estimate import memory_mib
from converters.data.stateful import data_inputs, first_stream
from converters.data.steps_file import write_steps
from converters.drift_reference import References
from converters.framework_process import TensorFlowProcess
from converters.frontends import ONNX
from converters.graph.graph import Graph, digest_of
from converters.machine import scratch_folder
from converters.plan import ConversionPlan
from converters.prepare import Prepared, float_quality, prepare
from converters.progress import ConversionCallbacks, StepCallback
from converters.quality.selection import Choice, choose
from converters.report.channels import ChannelReport
from converters.report.outputs import class_report, output_reports
from converters.report.page import report_html
from converters.report.pruning import Pruning
from converters.report.report import (
    ArtifactContents,
    CandidateReport,
    FloatReport,
    LayerReport,
    Report,
    RouteReport,
    SourceReport,
    TestReport,
    report_json,
)
from converters.up_to_date import replacement_reason
from edgekit.bundle.manifest import Golden, Manifest, OutputQuality, Quality
from edgekit.bundle.recipe import PRUNED, WHOLE, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError, EdgekitError, RefusedError, RuntimeLoadError
from edgekit.runtimes import LITERT
from edgekit.versions import versions_of

MACS_PER_SECOND = 5e9  # of a search, on one core; measured with `search_macs` on a network of 700,000 parameters
TOOL_PACKAGES = ("edgekit", "ai-edge-litert", "litert-quantizer", "keras", "numpy", "onnx", "onnxruntime", "onnxslim")
TENSORFLOW_PACKAGES = ("tensorflow", "tensorflow-cpu", "tf2onnx")


def run_plan(
    plan: ConversionPlan,
    *,
    callbacks: ConversionCallbacks | None = None,
    child: TensorFlowProcess | None = None,
    cache: Cache | None = None,
    costs: ProcessCosts | None = None,
) -> list[Report]:
    """Convert as `plan` says. Raises as `convert`.

    Args:
        plan: The plan of the conversion.
        callbacks: Progress callbacks.
        child: TensorFlow's process, which stays open; None starts one for this conversion.
        cache: Cache with the candidates of earlier conversions; None makes all candidates anew.
        costs: Costs of other processes, for the task pool.

    Returns:
        One report per target, in the order of the targets.
    """
    callbacks = callbacks or ConversionCallbacks()
    step = callbacks.step
    for profile, _ in plan.profiles:  # so that obstacles are reported before minutes of work
        require_writable(plan.output, plan.bundle_name(profile))
    with contextlib.ExitStack() as stack:
        child = child or stack.enter_context(TensorFlowProcess())
        scratch = stack.enter_context(scratch_folder(prefix="edgekit-convert-"))
        if plan.finetune:
            with step(f"import the training loop {plan.finetune}"):
                child.call("find_loop", name=plan.finetune)
        prepared = prepare(plan, child, step)
        require_targets(plan.profiles, prepared.source)
        for note in prepared.notes:
            callbacks.note(note)
        context = ConversionContext(prepared.graph, prepared.fixed, prepared.calibration, child, Path(scratch))
        cache_scope = _cache_scope(plan, prepared, cache)
        task_context = TaskContext(context, prepared.evidence, plan.budget)
        pool = stack.enter_context(TaskPool(task_context, warm_up=load_libraries, costs=costs))
        if plan.recipe is None and prepared.calibration is not None:
            pool.expect(search_macs(prepared.fixed, len(prepared.calibration)) / MACS_PER_SECOND)
        evidence = prepared.evidence
        levels = _levels(plan, prepared, context, cache_scope, callbacks)
        pruning = _pruning(plan, prepared, context, step)
        route = evaluate_direct_route(plan.recipe, plan.profiles, prepared.source, context, evidence, cache_scope, step)
        child.release()  # the source model is not needed any more
        builder = CandidateBuilder(task_context, pool, callbacks, cache_scope)
        references = References.of(prepared.calibration, evidence.choice, evidence.proof)
        shared = _Shared(plan, prepared, context, builder, pruning, levels, route, references)
        results, refused = _results(shared, callbacks)
    reports = []
    for report, manifest, files in results:
        reason = replacement_reason(plan.output / report.bundle, manifest, report)
        with step(f"write {report.bundle}"):
            folder = write_bundle(plan.output, report.bundle, manifest, files)
        callbacks.written(folder)
        if reason:
            callbacks.note(f"replaced the bundle that was in {folder}: {reason}")
        reports.append(msgspec.structs.replace(report, bundle=str(folder)))
        callbacks.reported(reports[-1])
    if reports and (after := prepared.source.after):
        write_steps(steps := plan.output / f"{plan.name}-steps.toml", after)
        cut = ",".join(spec.name for spec in prepared.graph.outputs)
        callbacks.note(
            f"the model is cut at {cut}; the steps after it are {', '.join(one.name for one in after)}. They are in "
            f"the bundles and in {steps}: to change one, edit the file and give --cut auto --preprocess {steps}"
        )
    if refused:
        raise refused[0]
    return reports


class _Shared(msgspec.Struct, frozen=True):
    """The state that the conversions for all targets share."""

    plan: ConversionPlan
    prepared: Prepared
    context: ConversionContext
    builder: CandidateBuilder
    pruning: Pruning
    levels: Levels | None
    route: RouteReport | None
    references: References


def _levels(
    plan: ConversionPlan,
    prepared: Prepared,
    context: ConversionContext,
    cache_scope: CacheScope,
    callbacks: ConversionCallbacks,
) -> Levels | None:
    """The levels of pruning; None where no recipe has any. A recipe's own recovered graph is made here."""
    recipe, evidence = plan.recipe, prepared.evidence
    seed = plan.seed if recipe is None else recipe.seed or 0
    levels = Levels(
        context,
        evidence.decision,
        evidence.looked_at,
        seed,
        # A conversion that needs no TensorFlow otherwise does not start it for training.
        trains=prepared.source.format != ONNX
        or any(runtime == LITERT for _, runtime in plan.profiles)
        or (recipe is not None and bool(recipe.recovery)),
        own=plan.finetune,
        cache_scope=cache_scope,
        step=callbacks.step,
        note=callbacks.note,
    )
    if recipe is None:
        return levels if plan.prune not in ("dead", "none") else None
    if recipe.recovery:
        with callbacks.step("recover the graph of the recipe"):
            levels.remake(recipe.base)
    return None


def _pruning(plan: ConversionPlan, prepared: Prepared, context: ConversionContext, step: StepCallback) -> Pruning:
    if plan.prune == "none" or prepared.graph.opaque is not None:  # channels of hidden operators are not known
        return Pruning(plan.prune, sum(prepared.channels.values()))
    evidence = prepared.evidence
    with step("find dead channels"):
        others = [evidence.choice, evidence.proof] if prepared.split else []
        pruning = find_dead_channels(context, prepared.channels, others, plan.budget.confidence)
        first = Recipe(prune=PRUNED) if pruning.found else WHOLE
        context.base_graph(context.fixed, plan.recipe or first)  # made here once, so that no copy makes it
        return pruning


def _cache_scope(plan: ConversionPlan, prepared: Prepared, cache: Cache | None) -> CacheScope:
    """The part of the cache for this graph, these samples and tools, and this kind of processor."""
    if plan.own_code:  # its code may have changed
        return CacheScope()
    evidence = prepared.evidence
    rows: list[Any] = []
    for samples in (prepared.calibration, evidence.choice, evidence.proof):
        rows += samples.arrays if samples else [None]
    graphs = digest_of(prepared.graph), digest_of(prepared.fixed)
    metrics = [(one.name, one.metric.name) for one in evidence.judged]
    judging = metrics, plan.budget.confidence, evidence.output, evidence.decision, evidence.ignored
    machine = _tools(prepared.source.format), this_processor()
    return CacheScope(cache, origin_of(*graphs, *judging, *machine, *rows))


_Result = tuple[Report, Manifest, dict[str, tuple[str, bytes]]]


def _results(shared: _Shared, callbacks: ConversionCallbacks) -> tuple[list[_Result], list[EdgekitError]]:
    """The results in the order of the targets, and why other targets get none.

    Accelerators are first, because they refuse most, and after seconds. The others go on without a target that refuses;
    a message names it at once, and the error that ends the command repeats the first reason.
    """
    results: dict[int, _Result] = {}
    refused: list[EdgekitError] = []
    numbered = list(enumerate(shared.plan.profiles))
    for index, (profile, runtime) in sorted(numbered, key=lambda one: not one[1][0].accelerator):
        try:
            results[index] = _convert_for(shared, profile, runtime, callbacks.step)
        except (RefusedError, ConversionError, RuntimeLoadError) as error:
            named = RefusedError(f"{profile.name}: {error}", advice=error.advice)
            refused.append(named if isinstance(error, RefusedError) else error)
            if len(numbered) > 1:
                callbacks.note(
                    f"no bundle for {profile.name}, the other targets go on: {error}. {error.advice}".strip()
                )
    return [results[index] for index, _ in numbered if index in results], refused


def _convert_for(shared: _Shared, profile: TargetProfile, runtime: str, step: StepCallback) -> _Result:
    """Make, choose and prove the artifact of one target; its report, manifest and files."""
    plan, prepared, context = shared.plan, shared.prepared, shared.context
    folder = context.folder / profile.name
    route = shared.route if direct_route_fits(profile, runtime) else None
    kinds = plan.recipes(profile, runtime)
    if route is not None and (plan.recipe is None or prepared.graph.opaque is not None):
        kinds = with_direct(kinds, route, context)
    if plan.share is not None:
        assert shared.levels is not None  # a share is never given with a recipe
        kinds = shared.levels.kinds_at(plan.share, profile, plan.aim, kinds)
    elif plan.recipe is None and shared.pruning.found:
        kinds = pruned_kinds(kinds)
    levels = shared.levels if plan.share is None else None
    candidates = shared.builder.candidates(
        profile, runtime, kinds, search=plan.recipe is None, levels=levels, aim=plan.aim
    )
    choice = choose([c.measured for c in candidates], plan.budget, aim=plan.aim, accept_unproven=plan.accept_unproven)
    recounted = recount(
        candidates,
        choice,
        aim=plan.aim,
        budget=plan.budget,
        profile=profile,
        samples=prepared.evidence.choice,
        folder=folder / "count",
        step=step,
    )
    candidates, choice = recounted.candidates, recounted.choice
    chosen = next(c for c in candidates if c.measured.recipe.id == choice.chosen)
    assert chosen.artifact is not None  # a candidate with a fault is never chosen
    with step(f"{profile.name}: prove {choice.chosen}"):
        test = score_artifact(prepared.test, chosen.artifact, folder / "test") if prepared.test else None
        report = _report(plan, prepared, profile, runtime, candidates, choice, test)
        contents = contents_of(chosen.artifact, folder / "contents")
        scores = shared.builder.sensitivity(profile, runtime, base_of(kinds))
        layers = tuple(
            LayerReport(one.layer.name, one.layer.operator, one.int8, one.int4)
            for one in sorted(scores, key=lambda one: -one.int8)
        )
        graph = context.base_graph(context.fixed, chosen.measured.recipe)
        matrix = _runtime_matrix(prepared, chosen, graph, contents, folder / "matrix")
        noise = (prepared.noise.sentence,) if prepared.noise.ill_conditioned else ()
        report = msgspec.structs.replace(
            report,
            contents=contents,
            notes=(*noise, *prepared.notes, *chosen.artifact.notes, *recounted.notes, *matrix.failures),
            sensitivity=layers,
            pruning=shared.pruning,
            channels=_channel_report(shared, chosen.measured.recipe, candidates),
            parity=(*report.parity, *matrix.parity),
            route=route,
        )
        reference, drift = shared.references.for_artifact(chosen.artifact, prepared.task, folder / "reference")
        report = msgspec.structs.replace(report, drift=drift)
        requirements = _requirements(graph, chosen.artifact)
        manifest, golden = _manifest(plan, prepared, profile, chosen, report, requirements, folder)
        files = bundle_files(chosen.artifact, golden, report_json(report), report_html(report), reference)
        files.update(prepared.preprocessing.bundle_files() if prepared.preprocessing else {})
    return report, with_files(manifest, files), files


def _channel_report(shared: _Shared, chosen: Recipe, candidates: list[Candidate]) -> ChannelReport | None:
    if shared.levels is None:
        return None
    recipes = [candidate.measured.recipe for candidate in candidates]
    return channel_report(shared.levels, shared.plan.prune, chosen, recipes, shared.prepared.channels)


def _runtime_matrix(
    prepared: Prepared, chosen: Candidate, graph: Graph, contents: ArtifactContents, folder: Path
) -> RuntimeMatrix:
    """Run the chosen artifact, made of `graph`, on every runtime that is installed on this machine."""
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
    candidates: list[Candidate],
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
            cost_error=c.measured.cost_error or None,
        )
        for c in candidates
    )
    chosen = next(c.measured for c in candidates if c.measured.recipe.id == choice.chosen)
    sizes = {stratum.name: len(stratum.rows) for stratum in evidence.strata}
    names = list(evidence.choice_answers)
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
        float_=FloatReport(len(graph.to_bytes()), float_quality(evidence)),
        candidates=rows,
        chosen=choice.chosen,
        proven=choice.proven,
        test=test,
        parity=(*prepared.steps, *(c.parity for c in candidates if c.parity is not None)),
        tools=_tools(prepared.source.format),
        preprocess=prepared.preprocessing.source if prepared.preprocessing else "none",
        outputs=output_reports(names, chosen.judgement, plan.budget, same=chosen.same),
        worst_class=class_report(chosen.judgement, sizes, plan.budget, same=chosen.same),
        noise=prepared.noise.outputs,
        task=prepared.task_report,
        send_inputs=plan.send_inputs,
    )


def _manifest(
    plan: ConversionPlan,
    prepared: Prepared,
    profile: TargetProfile,
    chosen: Candidate,
    report: Report,
    requirements: dict[str, Any],
    folder: Path,
) -> tuple[Manifest, bytes]:
    artifact, recipe = chosen.artifact, chosen.measured.recipe
    assert artifact is not None
    evidence = prepared.evidence
    choice = evidence.choice
    if choice.feeds:
        picked = first_stream(choice, GOLDEN_ROWS)
    else:
        picked = golden_rows(evidence.choice_answers, evidence.decision)
    rows = data_inputs(choice.take(picked))
    expected = {name: value[picked] for name, value in evidence.choice_answers.items()}
    quality = None
    if chosen.quality is not None and report.float_.quality is not None:
        float_value = report.float_.quality.value
        hard = sum(report.split.hard.values()) if report.split else 0
        quality = Quality(
            report.metric,
            chosen.quality.value,
            float_value,
            chosen.quality.n,
            report.proven,
            _qualities(report),
            hard or msgspec.UNSET,
        )
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
        requires=requirements,
        source_sha256=prepared.source.sha256,
        tools=report.tools,
        processing=prepared.preprocessing.processing if prepared.preprocessing else msgspec.UNSET,
        send_inputs=_limit(report.send_inputs),
    )
    golden = measure_golden(artifact, recipe, manifest, rows, expected, profile=profile, folder=folder / "golden")
    return msgspec.structs.replace(manifest, golden=golden), golden_bytes(rows, expected)


def _limit(send_inputs: str) -> Literal["decoded", "never"] | msgspec.UnsetType:
    """The limit of the manifest; unset for ``allowed``, so that such manifests keep their bytes and digest."""
    return msgspec.convert(send_inputs, Literal["decoded", "never"]) if send_inputs != "allowed" else msgspec.UNSET


def _qualities(report: Report) -> tuple[OutputQuality, ...] | msgspec.UnsetType:
    """The proof of each output; unset for a model with one output, whose quality says all."""
    if len(report.outputs) < 2:
        return msgspec.UNSET
    return tuple(
        OutputQuality(
            one.name,
            one.metric,
            one.limit,
            one.tested if math.isfinite(one.tested) else 0.0,  # JSON has no infinity
            one.drop.n,
            one.proven,
        )
        if one.drop is not None and one.limit is not None and one.tested is not None
        else OutputQuality(one.name)
        for one in report.outputs
    )


def _requirements(graph: Graph, artifact: Artifact) -> dict[str, Any]:
    """Requirements on a device. No processor is among them: the artifacts run on every processor with the runtime."""
    requirements: dict[str, Any] = {"memory_mib": memory_mib(graph, len(artifact.data))}
    if artifact.runtime_version:
        requirements["runtime_version"] = artifact.runtime_version
    return requirements


def _tools(source_format: str) -> dict[str, str]:
    names = TOOL_PACKAGES if source_format == "onnx" else (*TOOL_PACKAGES, *TENSORFLOW_PACKAGES)
    return versions_of(names)  # only one of tensorflow and tensorflow-cpu is installed
