"""Evaluates the direct route: the float LiteRT file of the source's own converter, compared with the lowered file.

A direct file without parity is never a candidate. Otherwise two figures are compared: the calls that the runtime makes
outside XNNPACK, and bytes. Where the direct file is better in one of them, its recipes become candidates beside the
lowered ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from converters.backends import ConversionContext, backend_for, direct_route_fits
from converters.backends.contract import DirectFile, LoweredFile
from converters.backends.tflite.facts import facts_of, pieces_of
from converters.cache import CacheScope
from converters.candidates.candidate import direct_fault, open_artifact, run_rows
from converters.candidates.evidence import Evidence
from converters.cost.overhead import FileFacts, Loop, Overhead
from converters.frontends import Source
from converters.progress import StepCallback
from converters.quality import parity
from converters.report.report import RouteReport
from edgekit.bundle.recipe import DIRECT, STATIC, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError, RuntimeLoadError, UnsupportedOpError
from edgekit.runtimes import LITERT

LEAST_SAVING = 0.02  # share of the lowered float file's bytes; in an int8 file it is up to four times this share
PARITY_ROWS = 32


class _Evaluation(msgspec.Struct, frozen=True):
    """The result of an evaluation; `data` is empty where the file cannot be used."""

    report: RouteReport
    overhead: Overhead = Overhead()
    data: bytes = b""


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
        None where the route was not evaluated: no target can run the file, the source has no converter of its own to
        LiteRT, or `recipe` takes the lowering.

    Raises:
        ConversionError: `recipe` takes the direct route, and there is no file or its answers differ; says why.
    """
    profiles = [profile for profile, runtime in targets if direct_route_fits(profile, runtime)]
    report, opaque = None, context.graph.opaque
    if profiles and source.direct is not None and (recipe is None or recipe.direct or opaque):
        with step("evaluate the direct route to LiteRT"):
            report = _evaluate_cached(source, context, evidence, profiles[0], cache_scope)
    if opaque is not None and context.direct is None:
        why = report.reason if report else "no target takes it"
        raise ConversionError(
            f"operator {opaque.operator} (layer {opaque.layer!r}) leaves only the direct route to LiteRT: {why}",
            advice="Replace the layer, or save the model from the next layer on and compute this one before the model.",
        )
    if recipe is not None and recipe.direct and context.direct is None:
        why = (
            report.reason if report else "only Keras, SavedModel and float .tflite models have one, for LiteRT on a CPU"
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


def _evaluate_cached(
    source: Source, context: ConversionContext, evidence: Evidence, profile: TargetProfile, cache_scope: CacheScope
) -> RouteReport:
    key = ("direct", source.sha256)
    evaluation = cache_scope.get(key, _Evaluation)
    if evaluation is None:
        evaluation = _evaluate(source, context, evidence, profile)
        if evaluation.data:  # a fault may be temporary
            cache_scope.put(key, evaluation)
    context.use_direct(_write_direct(context, evaluation.data, evaluation.overhead) if evaluation.data else None)
    return evaluation.report


def _evaluate(source: Source, context: ConversionContext, evidence: Evidence, profile: TargetProfile) -> _Evaluation:
    assert source.direct is not None
    graph = context.graph
    try:
        made = source.direct([spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs])
        file = _write_direct(context, made.data, Overhead())
        context.use_direct(file)
        _require_parity(context, evidence, profile)
        direct = _facts(file.file.path, known=graph.opaque is None)
    except (ConversionError, RuntimeLoadError) as error:
        return _Evaluation(RouteReport(False, f"there is no direct file: {_first_line(error)}"))
    try:
        lowered = facts_of(_lowered(context).path)
    except ConversionError as error:
        overhead = Overhead(direct.loops, _runtime_calls(direct))
        return _Evaluation(
            RouteReport(True, f"only the direct file can be made: {_first_line(error)}", None, direct),
            overhead,
            made.data,
        )
    overhead = Overhead(direct.loops, _runtime_calls(direct) - _runtime_calls(lowered))
    better = _advantages(direct, lowered)
    reason = f"the direct file {better}" if better else "the direct file is no better than the lowered one"
    return _Evaluation(RouteReport(bool(better), reason, lowered, direct), overhead, made.data)


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


def _write_direct(context: ConversionContext, data: bytes, overhead: Overhead) -> DirectFile:
    path = context.folder / "float32-direct.tflite"
    path.write_bytes(data)
    inputs: list[tuple[int, ...]] = [() for _ in context.graph.inputs]
    outputs: list[tuple[int, ...]] = [() for _ in context.graph.outputs]
    return DirectFile(LoweredFile(path, inputs, outputs), hashlib.sha256(data).hexdigest(), overhead)


def _require_parity(context: ConversionContext, evidence: Evidence, profile: TargetProfile) -> None:
    """Check the answers of the direct float file, run by the device's adapter, against the canonical graph."""
    artifact = backend_for(profile, LITERT, context).build(Recipe(route=DIRECT))
    rows = slice(0, PARITY_ROWS)
    expected = {name: value[rows] for name, value in evidence.choice_answers.items()}
    runtime = open_artifact(artifact, context.folder / "direct")
    try:
        answers = run_rows(runtime, evidence.choice.take(rows).inputs)
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
