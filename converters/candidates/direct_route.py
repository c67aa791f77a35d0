"""Evaluates the direct route to LiteRT: a float file with its loops, compared with the lowered file without loops.

Of a graph with recurrent layers it is the graph lowered with these layers as loops; otherwise, or where that fails, it
is the file of the source's own converter. A direct file without parity is never a candidate. Otherwise two figures are
compared: the calls that the runtime makes outside XNNPACK, and bytes. Where the direct file is better in one of them,
its recipes become candidates beside the lowered ones.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from converters.backends import ConversionContext, backend_for, direct_route_fits
from converters.backends.contract import DirectFile, LoweredFile
from converters.backends.tflite.facts import facts_of, pieces_of
from converters.cache import CacheScope
from converters.candidates.candidate import direct_fault, open_artifact, run_rows
from converters.candidates.evidence import Evidence
from converters.cost.estimate import RECURRENT
from converters.cost.overhead import FileFacts, Loop, Overhead
from converters.frontends import Source
from converters.lowering import Lowered
from converters.progress import StepCallback
from converters.quality import parity
from converters.report.report import RouteReport
from edgekit.bundle.recipe import DIRECT, STATIC, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError, RuntimeLoadError, UnsupportedOpError
from edgekit.runtimes import LITERT

LEAST_SAVING = 0.02  # share of the lowered float file's bytes; in an int8 file it is up to four times this share
PARITY_ROWS = 32
Maker = Callable[[], Lowered]


class _Evaluation(msgspec.Struct, frozen=True):
    """The result of an evaluation; `file` is absent where it cannot be used."""

    report: RouteReport
    overhead: Overhead = Overhead()
    file: Lowered | None = None


def evaluate_direct_route(
    recipe: Recipe | None,
    targets: Sequence[tuple[TargetProfile, str]],
    source: Source,
    context: ConversionContext,
    evidence: Evidence,
    cache_scope: CacheScope,
    step: StepCallback,
) -> RouteReport | None:
    """Make the direct file, compare it, and store it in `context` if it answers as the canonical graph does.

    Args:
        recipe: The only recipe to try; None for all.
        targets: The targets, each with its runtime.
        source: The source model.
        context: The context of the backends.
        evidence: Samples with the canonical graph's answers.
        cache_scope: Evaluations of earlier runs.
        step: Called with the name of each step.

    Returns:
        None where the route was not evaluated: no target can run the file, the graph has no recurrent layer and the
        source no converter of its own to LiteRT, or `recipe` takes the lowering.

    Raises:
        ConversionError: `recipe` takes the direct route, and there is no file or its answers differ; says why.
    """
    profiles = [profile for profile, runtime in targets if direct_route_fits(profile, runtime)]
    report, opaque = None, context.graph.opaque
    makers = _makers(source, context)
    if profiles and makers and (recipe is None or recipe.direct or opaque):
        with step("evaluate the direct route to LiteRT"):
            report = _evaluate_cached(source, makers, context, evidence, profiles[0], cache_scope)
    if opaque is not None and context.direct is None:
        why = report.reason if report else "no target takes it"
        raise ConversionError(
            f"operator {opaque.operator} (layer {opaque.layer!r}) leaves only the direct route to LiteRT: {why}",
            advice="Replace the layer, or save the model from the next layer on and compute this one before the model.",
        )
    if recipe is not None and recipe.direct and context.direct is None:
        why = (
            report.reason
            if report
            else "only Keras, SavedModel and float .tflite models and recurrent networks have one, for LiteRT on a CPU"
        )
        raise ConversionError(
            f"the recipe takes the direct route, which this model does not have: {why}",
            advice="Remove route from the recipe.",
        )
    return report


def with_direct(kinds: Sequence[Recipe], route: RouteReport, context: ConversionContext) -> list[Recipe]:
    """`kinds`, and the same kinds by the direct route where its file is better.

    Where the lowering cannot make a file, only kinds of the direct route are left. Static int8 is left out for a file
    with loops, because tensors in the body of a loop have no ranges.
    """
    if not route.taken or context.direct is None:
        return list(kinds)
    looped = bool(context.direct.overhead.loops)
    direct = [msgspec.structs.replace(kind, route=DIRECT) for kind in kinds if kind.precision != STATIC or not looped]
    return direct if route.lowered is None else [*kinds, *direct]


def _makers(source: Source, context: ConversionContext) -> list[Maker]:
    """Functions that make the direct file, the best first."""
    makers: list[Maker] = []
    if any(node.op_type in RECURRENT for node in context.fixed.nodes):
        makers.append(functools.partial(context.child.call, "lower", model=context.fixed.to_bytes(), loops=True))
    if source.direct is not None:
        names = [[spec.name for spec in specs] for specs in (context.graph.inputs, context.graph.outputs)]
        makers.append(functools.partial(source.direct, *names))
    return makers


def _evaluate_cached(
    source: Source,
    makers: Sequence[Maker],
    context: ConversionContext,
    evidence: Evidence,
    profile: TargetProfile,
    cache_scope: CacheScope,
) -> RouteReport:
    key = ("direct", source.sha256)
    evaluation = cache_scope.get(key, _Evaluation)
    if evaluation is None:
        evaluation = _evaluate(makers, context, evidence, profile)
        if evaluation.file is not None:  # a fault may be temporary
            cache_scope.put(key, evaluation)
    context.use_direct(
        None if evaluation.file is None else _write_direct(context, evaluation.file, evaluation.overhead)
    )
    return evaluation.report


def _evaluate(
    makers: Sequence[Maker], context: ConversionContext, evidence: Evidence, profile: TargetProfile
) -> _Evaluation:
    lowered, why = None, ""
    try:
        lowered = facts_of(_lowered(context).path)
    except ConversionError as error:
        why = " ".join(part for part in (_first_line(error), error.advice) if part)
    faults = []
    for make in makers:
        try:
            made = make()
            file = _write_direct(context, made, Overhead())
            context.use_direct(file)
            _require_parity(context, evidence, profile)
            direct = _facts(file.file.path, known=lowered is not None)
            break
        except (ConversionError, RuntimeLoadError) as error:
            faults.append(_first_line(error))
    else:
        return _Evaluation(RouteReport(False, f"there is no direct file: {'; '.join(faults)}"))
    if lowered is None:
        overhead = Overhead(direct.loops, _runtime_calls(direct))
        report = RouteReport(True, f"only the direct file can be made: {why}", None, direct)
        return _Evaluation(report, overhead, made)
    overhead = Overhead(direct.loops, _runtime_calls(direct) - _runtime_calls(lowered))
    better = _advantages(direct, lowered)
    reason = f"the direct file {better}" if better else "the direct file is no better than the lowered one"
    return _Evaluation(RouteReport(bool(better), reason, lowered, direct), overhead, made)


def _facts(path: Path, *, known: bool) -> FileFacts:
    """The facts of the direct file. Where it is the only file, a loop of unknown length counts as one step.

    Raises:
        ConversionError: a loop has no fixed number of steps, and `known` asks for one.
    """
    try:
        return facts_of(path)
    except ConversionError:
        if known:
            raise
        return FileFacts(path.stat().st_size, *pieces_of(path), (Loop(1, 1, 0, 0),))


def _lowered(context: ConversionContext) -> LoweredFile:
    """The file of the lowering. Raises ConversionError as the lowering does, at once where operators are hidden."""
    opaque = context.graph.opaque
    if opaque is not None:
        raise ConversionError(f"operator {opaque.operator} (layer {opaque.layer!r}) has no ONNX form")
    return context.lowered(context.fixed)


def require_targets(targets: Sequence[tuple[TargetProfile, str]], source: Source) -> None:
    """Check that every target can take `source`.

    Raises:
        UnsupportedOpError: an operator has no ONNX form, and a target does not run LiteRT on a CPU.
    """
    opaque = source.graph.opaque
    if opaque is None:
        return
    for profile, runtime in targets:
        if not direct_route_fits(profile, runtime):
            raise UnsupportedOpError(
                opaque.operator,
                opaque.layer,
                backend=f"target {profile.name}, which runs {profile.accelerator or runtime}: it has no ONNX form",
                advice="Choose targets that run LiteRT on a CPU, such as raspberry-pi-4; or replace the layer.",
            )


def _first_line(error: Exception) -> str:
    """The first line of a message; the rest is output of a framework."""
    return str(error).partition("\n")[0]


def _write_direct(context: ConversionContext, made: Lowered, overhead: Overhead) -> DirectFile:
    path = context.folder / "float32-direct.tflite"
    path.write_bytes(made.data)
    file = LoweredFile(path, made.input_permutes, made.output_permutes)
    return DirectFile(file, hashlib.sha256(made.data).hexdigest(), overhead)


def _require_parity(context: ConversionContext, evidence: Evidence, profile: TargetProfile) -> None:
    """Check the answers of the direct float file, run by the device's adapter, against the canonical graph."""
    artifact = backend_for(profile, LITERT, context).build(Recipe(route=DIRECT))
    rows = slice(0, PARITY_ROWS)
    expected = {name: value[rows] for name, value in evidence.choice_answers.items()}
    runtime = open_artifact(artifact, context.folder / "direct")
    try:
        answers = run_rows(runtime, evidence.choice.take(rows).inputs, evidence.rows)
    finally:
        runtime.close()
    limits = parity.tolerances(expected, parity.FLOAT32_RELATIVE, evidence.noise)
    compared = parity.compare(expected, answers, runtime="direct", where=runtime.provider, decision="", limits=limits)
    if compared.excess > 1.0:
        raise ConversionError(direct_fault(compared))


def _advantages(direct: FileFacts, lowered: FileFacts) -> str:
    """The advantages of the direct file as text; empty without any."""
    advantages = []
    if _runtime_calls(direct) < _runtime_calls(lowered):
        advantages.append(f"needs {_runtime_calls(direct)} calls of the runtime instead of {_runtime_calls(lowered)}")
    if direct.bytes <= (1 - LEAST_SAVING) * lowered.bytes:
        advantages.append(f"has {direct.bytes} bytes instead of {lowered.bytes}")
    return " and ".join(advantages)


def _runtime_calls(facts: FileFacts) -> int:
    """Number of delegate pieces and operators that the runtime calls; 0 where it is not known."""
    return (facts.pieces or 0) + (facts.outside or 0)
