"""From a model file to one proven bundle per target: load, simplify, make candidates, choose, prove, write."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from converters import parity
from converters.backends import Artifact, Workbench, backend_for, precisions_of
from converters.bundle import bundle_files, golden_bytes, golden_rows, measure_golden, with_files, write_bundle
from converters.candidates import Candidate, Evidence, labels_for, make_candidate, open_artifact, run_rows
from converters.child import TensorFlowChild
from converters.cost import memory_mib
from converters.frontends import Source, load_model
from converters.graph import Graph
from converters.parity import Parity
from converters.passes import CANONICAL_PASSES, run_pass
from converters.quality import find_metric, score
from converters.report import (
    CandidateReport,
    FloatReport,
    Report,
    SourceReport,
    SplitReport,
    TestReport,
    Value,
    report_html,
    report_json,
)
from converters.samples import Samples, Split, load_samples, random_samples, split_samples
from converters.search import AIMS, Budget, Choice, candidates, choose
from converters.tasks import detect_task
from edgekit.errors import ManifestError, RecipeError, SettingsError
from edgekit.manifest import NAME, VERSION, Golden, Manifest, Quality, Task
from edgekit.recipe import Recipe
from edgekit.targets import TargetProfile, builtin_targets, find_target

PARITY_ROWS = 32
RANDOM_ROWS, RANDOM_SEED = 64, 1
PACKAGES = ("edgekit", "ai-edge-litert", "ai-edge-quantizer", "keras", "numpy", "onnx", "onnxruntime", "onnxslim")
TENSORFLOW_PACKAGES = ("tensorflow", "tensorflow-cpu", "tf2onnx")

Step = Callable[[str], contextlib.AbstractContextManager[None]]


class Plan(msgspec.Struct, frozen=True):
    """What one conversion is asked to do, checked before any work.

    Attributes:
        model: Path of the source model.
        profiles: The targets, each with the runtime that was chosen for it.
        output: Where bundles are written.
        name, version: The bundles' identity.
        data, test: Data files; None for none.
        metric: Name of the metric; None for the default.
        aim: ``cost`` or ``size``.
        budget: What may be lost.
        accept_unproven: Take a point estimate for a proof.
        recipe: The only recipe to try; None for all that the target can do.
    """

    model: Path
    profiles: tuple[tuple[TargetProfile, str], ...]
    output: Path
    name: str
    version: str
    data: Path | None
    test: Path | None
    metric: str | None
    aim: str
    budget: Budget
    accept_unproven: bool
    recipe: Recipe | None

    def recipes(self, profile: TargetProfile, runtime: str) -> list[Recipe]:
        """The candidates of one target.

        Raises:
            RecipeError: the target cannot do the recipe that was asked for, or can only do int8 and there is no data.
        """
        known = precisions_of(profile, runtime)
        found = candidates(profile, known, with_data=self.data is not None, runtime=runtime)
        if self.recipe is None:
            if not found:
                raise RecipeError(
                    f"target {profile.name} runs int8 only, which needs samples to calibrate with",
                    advice="Give --data with real samples.",
                )
            return found
        if self.recipe.precision not in known:
            raise RecipeError(f"target {profile.name} takes {', '.join(known)}, not {self.recipe.precision}")
        if self.recipe.precision == "int8" and self.data is None:
            raise RecipeError("an int8 recipe needs samples to calibrate with", advice="Give --data with real samples.")
        by_precision = {recipe.precision: recipe for recipe in found}
        symmetric = self.recipe.symmetric or by_precision[self.recipe.precision].symmetric
        return [msgspec.structs.replace(self.recipe, symmetric=symmetric)]


def make_plan(
    model: str | Path,
    *,
    targets: Sequence[str],
    data: str | Path | None = None,
    test: str | Path | None = None,
    metric: str | None = None,
    aim: str = "cost",
    max_drop: float = 0.01,
    confidence: float = 0.95,
    accept_unproven: bool = False,
    max_bytes: int | None = None,
    max_cost: float | None = None,
    recipe: Recipe | None = None,
    runtime: str | None = None,
    name: str | None = None,
    version: str = "1.0.0",
    output: str | Path = "bundles",
) -> Plan:
    """Check what was asked for; the arguments are those of `convert`.

    Raises:
        NotFoundError: there is no such target.
        SettingsError: a value is out of its range, or a target cannot run `runtime`.
        ManifestError: the name or version cannot be a bundle's.
        RecipeError: as Plan.recipes.
    """
    table = builtin_targets()
    profiles = tuple((profile, _runtime_of(profile, runtime)) for profile in (find_target(t, table) for t in targets))
    if not profiles:
        raise SettingsError("no target was named", advice="Give --target; `edgekit targets` lists them.")
    if aim not in AIMS:
        raise SettingsError(f"aim is {aim!r}, expected {' or '.join(AIMS)}")
    if not 0.5 <= confidence < 1.0 or max_drop < 0:
        raise SettingsError(
            f"confidence is {confidence}, expected 0.5 to 1; max_drop is {max_drop}, expected 0 or more"
        )
    stem = name or re.sub(r"[^a-z0-9._-]+", "-", Path(model).stem.lower()).strip("-._") or "model"
    if not NAME.fullmatch(stem):
        raise ManifestError(f"name {stem!r} is not of the form {NAME.pattern}", advice="Give another with --name.")
    if not VERSION.fullmatch(version):
        raise ManifestError(f"version {version!r} is not of the form X.Y.Z", advice="For example 1.0.0.")
    plan = Plan(
        model=Path(model),
        profiles=profiles,
        output=Path(output),
        name=stem,
        version=version,
        data=Path(data) if data is not None else None,
        test=Path(test) if test is not None else None,
        metric=metric,
        aim=aim,
        budget=Budget(max_drop, confidence, max_bytes, max_cost),
        accept_unproven=accept_unproven,
        recipe=recipe,
    )
    for profile, chosen in profiles:
        plan.recipes(profile, chosen)
    return plan


def convert(model: str | Path, *, on_step: Step | None = None, **choices: Any) -> list[Report]:
    """Make the best proven bundle of `model` for each target; the same as `edgekit convert`.

    Args:
        model: .keras, .h5, a SavedModel folder or .onnx.
        on_step: Called with the name of each step; its context lasts as long as the step.
        choices: As `make_plan`: targets, data, test, metric, aim, max_drop, confidence, accept_unproven, max_bytes,
            max_cost, recipe, runtime, name, version, output.

    Returns:
        One report a target, in order; `bundle` is the path of the folder that was written.

    Raises:
        ModelFormatError, UnsupportedOpError: the model cannot be read or converted.
        DataError: the samples do not fit.
        ParityError: a step changed the answers.
        RefusedError: no candidate of a target meets the budget. Nothing is written then, for no target.
    """
    return run_plan(make_plan(model, **choices), on_step=on_step)


def run_plan(plan: Plan, *, on_step: Step | None = None) -> list[Report]:
    """Do what `plan` says; see `convert`."""
    step = on_step or (lambda label: contextlib.nullcontext())
    with TensorFlowChild() as child, tempfile.TemporaryDirectory(prefix="edgekit-convert-") as scratch:
        prepared = _prepare(plan, child, step)
        bench = Workbench(prepared.graph, prepared.calibration, child, Path(scratch))
        done = [_one_target(plan, prepared, bench, profile, runtime, step) for profile, runtime in plan.profiles]
    written = []
    for report, manifest, files in done:
        with step(f"write {report.bundle}"):
            folder = write_bundle(plan.output, report.bundle, manifest, files)
        written.append(msgspec.structs.replace(report, bundle=str(folder)))
    return written


class Prepared(msgspec.Struct, frozen=True):
    """What all targets share: the source, the canonical graph, the evidence, and how it came about."""

    source: Source
    graph: Graph
    calibration: Samples | None
    split: SplitReport | None
    evidence: Evidence
    test: Samples | None
    task: Task
    steps: tuple[Parity, ...]


def _prepare(plan: Plan, child: TensorFlowChild, step: Step) -> Prepared:
    with step(f"load {plan.model.name}"):
        source = load_model(plan.model, child)
        specs = source.graph.logical_inputs
        split = split_samples(load_samples(plan.data, specs)) if plan.data is not None else None
        test = load_samples(plan.test, specs) if plan.test is not None else None
    choice = split.choice if split else random_samples(specs, RANDOM_ROWS, RANDOM_SEED)
    with step("simplify, with a parity check after each pass"):
        graph, steps = _canonical(source, choice.take(slice(0, PARITY_ROWS)))
    labels = split.proof.labels if split else None
    task = detect_task(graph, labels)
    steps = tuple(steps)
    with step("answers of the float model"):
        evidence = _evidence(plan, graph, task, split, choice)
    return Prepared(
        source=source,
        graph=graph,
        calibration=split.calibration if split else None,
        split=_split_report(split) if split else None,
        evidence=evidence,
        test=test,
        task=task,
        steps=steps,
    )


def _canonical(source: Source, samples: Samples) -> tuple[Graph, tuple[Parity, ...]]:
    """Run the passes; after every step the answers must still be the source model's own."""
    expected = source.answers(samples.inputs)
    limit = parity.tolerance(expected, parity.FLOAT32_RELATIVE)
    graph, steps = source.graph, []

    def check(name: str) -> None:
        found = parity.compare(expected, graph.run(samples.inputs), runtime=name, where="canonical graph", decision="")
        parity.require(found, limit)
        steps.append(found)

    check(f"read {source.format}")
    for one in CANONICAL_PASSES:
        result = run_pass(one, graph)
        if result.modified:
            graph = result.graph
            check(one.name)
    return graph, tuple(steps)


def _evidence(plan: Plan, graph: Graph, task: Task, split: Split | None, choice: Samples) -> Evidence:
    proof = split.proof if split else choice
    answers = graph.run(choice.inputs)
    metric = find_metric(plan.metric, proof.labels) if split else None
    return Evidence(
        choice=choice,
        proof=proof,
        choice_answers=answers,
        proof_answers=graph.run(proof.inputs) if split else answers,
        metric=metric,
        output=task.output or graph.outputs[0].name,
        decision=task.output if task.kind == "classification" else "",
    )


Done = tuple[Report, Manifest, dict[str, tuple[str, bytes]]]


def _one_target(
    plan: Plan, prepared: Prepared, bench: Workbench, profile: TargetProfile, runtime: str, step: Step
) -> Done:
    backend = backend_for(profile, runtime, bench)
    folder = bench.folder / profile.name
    found = []
    for recipe in plan.recipes(profile, runtime):
        with step(f"{profile.name}: {recipe.id}"):
            found.append(
                make_candidate(
                    backend,
                    recipe,
                    graph=prepared.graph,
                    profile=profile,
                    evidence=prepared.evidence,
                    budget=plan.budget,
                    folder=folder,
                )
            )
    choice = choose([c.measured for c in found], plan.budget, aim=plan.aim, accept_unproven=plan.accept_unproven)
    chosen = next(c for c in found if c.measured.recipe.id == choice.chosen)
    assert chosen.artifact is not None  # a candidate with a fault is never chosen
    with step(f"{profile.name}: prove {choice.chosen}"):
        report = _report(plan, prepared, profile, runtime, found, choice, _tested(prepared, chosen, folder))
        manifest, golden = _manifest(plan, prepared, profile, chosen, report, folder)
        files = bundle_files(chosen.artifact, golden, report_json(report), report_html(report))
    return report, with_files(manifest, files), files


def _tested(prepared: Prepared, chosen: Candidate, folder: Path) -> TestReport | None:
    """Quality on the test file, which nothing was chosen by."""
    metric, test, output = prepared.evidence.metric, prepared.test, prepared.evidence.output
    if test is None:
        return None
    expected = prepared.graph.run(test.inputs)
    if metric is None:
        metric = find_metric(None, test.labels)
    assert chosen.artifact is not None
    runtime = open_artifact(chosen.artifact, folder / "test")
    try:
        found = run_rows(runtime, test.inputs)
    finally:
        runtime.close()
    labels = labels_for(test, expected, metric, output)
    values = [metric.value(score(metric, answers[output], labels)) for answers in (expected, found)]
    return TestReport(values[0], values[1], len(test))


def _report(
    plan: Plan,
    prepared: Prepared,
    profile: TargetProfile,
    runtime: str,
    found: list[Candidate],
    choice: Choice,
    test: TestReport | None,
) -> Report:
    evidence, graph = prepared.evidence, prepared.graph
    quality = None
    if evidence.metric is not None:
        labels = labels_for(evidence.proof, evidence.proof_answers, evidence.metric, evidence.output)
        scores = score(evidence.metric, evidence.proof_answers[evidence.output], labels)
        quality = Value(evidence.metric.value(scores), len(scores))
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
        bundle=f"{plan.name}-{plan.version}-{profile.name}",
        source=SourceReport(prepared.source.path.name, prepared.source.sha256, prepared.source.format),
        metric=evidence.metric.name if evidence.metric else "none",
        data="given" if prepared.split else "random",
        split=prepared.split,
        aim=plan.aim,
        budget=plan.budget,
        float_=FloatReport(len(graph.to_bytes()), quality),
        candidates=rows,
        chosen=choice.chosen,
        proven=choice.proven,
        test=test,
        parity=(*prepared.steps, *(c.parity for c in found if c.parity is not None)),
        tools=_tools(prepared.source.format),
    )


def _manifest(
    plan: Plan, prepared: Prepared, profile: TargetProfile, chosen: Candidate, report: Report, folder: Path
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
        requires=_demands(prepared.graph, artifact),
        source_sha256=prepared.source.sha256,
        tools=report.tools,
    )
    golden = measure_golden(artifact, recipe, manifest, rows, expected, profile=profile, folder=folder / "golden")
    return msgspec.structs.replace(manifest, golden=golden), golden_bytes(rows, expected)


def _demands(graph: Graph, artifact: Artifact) -> dict[str, Any]:
    """What a device must have. No processor is named: these artifacts run on any that has the runtime."""
    demands: dict[str, Any] = {"memory_mib": memory_mib(graph, len(artifact.data))}
    if artifact.runtime_version:
        demands["runtime_version"] = artifact.runtime_version
    return demands


def _runtime_of(profile: TargetProfile, runtime: str | None) -> str:
    if runtime is None:
        return profile.runtimes[0]
    if runtime not in profile.runtimes:
        raise SettingsError(f"target {profile.name} runs {', '.join(profile.runtimes)}, not {runtime!r}")
    return runtime


def _split_report(split: Split) -> SplitReport:
    return SplitReport(split.digest, len(split.calibration), len(split.choice), len(split.proof))


def _tools(source_format: str) -> dict[str, str]:
    names = PACKAGES if source_format == "onnx" else (*PACKAGES, *TENSORFLOW_PACKAGES)
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # tensorflow or tensorflow-cpu, not both
            found[name] = importlib.metadata.version(name)
    return found
