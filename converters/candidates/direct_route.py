"""Whether the source's own converter makes a better LiteRT file than our lowering: asked once, of the float files.

Parity comes first, since a file that is off is no candidate at all; then what the runtime must do without XNNPACK, then
bytes. Only where the direct file is ahead in one of them do its kinds become candidates beside the lowered ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from converters.backends import ConversionContext, backend_for, leads_to
from converters.backends.contract import DirectFile, LoweredFile
from converters.backends.tflite.facts import facts_of
from converters.cache import CacheScope
from converters.candidates.candidate import Evidence, direct_fault, open_artifact, run_rows
from converters.cost.overhead import FileFacts, Overhead
from converters.frontends import Source
from converters.progress import StepCallback
from converters.quality import parity
from converters.report.report import RouteReport
from edgekit.bundle.recipe import DIRECT, STATIC, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError, RuntimeLoadError
from edgekit.runtimes import LITERT

WORTH = 0.02  # of the lowered float file's bytes: up to four times this share of an int8 one, whose graph is the same
PARITY_ROWS = 32


class _Found(msgspec.Struct, frozen=True):
    """What is kept of a look; `data` is empty where the file is of no use."""

    report: RouteReport
    overhead: Overhead = Overhead()
    data: bytes = b""


def consider(
    recipe: Recipe | None,
    targets: Sequence[tuple[TargetProfile, str]],
    source: Source,
    context: ConversionContext,
    evidence: Evidence,
    cache_scope: CacheScope,
    step: StepCallback,
) -> RouteReport | None:
    """Make the direct file, compare it, and give it to `context` where it answers as the canonical graph does.

    Args:
        recipe: The only one that is to be tried, if there is one.
        targets: Each with its runtime.
        source: The model.
        context: What backends work with.
        evidence: Samples, with the canonical graph's answers.
        cache_scope: What earlier runs made of the same.
        step: Called with the name of each step; its context lasts as long as the step.

    Returns:
        None where nobody looked: no target could take the file, the source has no way of its own to LiteRT, or `recipe`
        goes by the lowering.

    Raises:
        ConversionError: `recipe` asks for the direct route, and there is none or its file is off; says why.
    """
    ends = [profile for profile, runtime in targets if leads_to(profile, runtime)]
    report = None
    if ends and source.direct is not None and (recipe is None or recipe.direct):
        with step("look at the direct route to LiteRT"):
            report = _look(source, context, evidence, ends[0], cache_scope)
    if recipe is not None and recipe.direct and context.direct is None:
        why = report.reason if report else "it leads from Keras, SavedModel and float .tflite models to LiteRT"
        raise ConversionError(
            f"the recipe asks for the direct route, which this model does not have: {why}",
            advice="Leave route out of the recipe.",
        )
    return report


def with_direct(kinds: Sequence[Recipe], route: RouteReport, context: ConversionContext) -> list[Recipe]:
    """The kinds of a target that the route leads to, those of the direct file added where it was found to be better.

    Where the lowering cannot make a file there are only these. A loop's body has no ranges, so there is no static int8.
    """
    if not route.taken or context.direct is None:
        return list(kinds)
    looped = bool(context.direct.overhead.loops)
    direct = [msgspec.structs.replace(kind, route=DIRECT) for kind in kinds if kind.precision != STATIC or not looped]
    return direct if route.lowered is None else [*kinds, *direct]


def _look(
    source: Source, context: ConversionContext, evidence: Evidence, profile: TargetProfile, cache_scope: CacheScope
) -> RouteReport:
    key = ("direct", source.sha256)
    found = cache_scope.get(key, _Found)
    if found is None:
        found = _looked(source, context, evidence, profile)
        if found.data:  # what stood in the way may pass
            cache_scope.put(key, found)
    context.direct = _placed(context, found.data, found.overhead) if found.data else None
    return found.report


def _looked(source: Source, context: ConversionContext, evidence: Evidence, profile: TargetProfile) -> _Found:
    assert source.direct is not None
    graph = context.graph
    try:
        made = source.direct([spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs])
        context.direct = _placed(context, made.data, Overhead())
        _require_parity(context, evidence, profile)
        direct = facts_of(context.direct.file.path)
    except (ConversionError, RuntimeLoadError) as error:
        return _Found(RouteReport(False, f"there is no direct file: {_first_line(error)}"))
    try:
        lowered = facts_of(context.lowered(context.fixed).path)
    except ConversionError as error:
        overhead = Overhead(direct.loops, _alone(direct))
        return _Found(
            RouteReport(True, f"only the direct file can be made: {_first_line(error)}", None, direct),
            overhead,
            made.data,
        )
    overhead = Overhead(direct.loops, _alone(direct) - _alone(lowered))
    better = _ahead(direct, lowered)
    reason = f"the direct file {better}" if better else "the direct file is no better than the lowered one"
    return _Found(RouteReport(bool(better), reason, lowered, direct), overhead, made.data)


def _first_line(error: Exception) -> str:
    """Without what a framework has printed before it failed."""
    return str(error).partition("\n")[0]


def _placed(context: ConversionContext, data: bytes, overhead: Overhead) -> DirectFile:
    path = context.folder / "float32-direct.tflite"
    path.write_bytes(data)
    inputs: list[tuple[int, ...]] = [() for _ in context.graph.inputs]
    outputs: list[tuple[int, ...]] = [() for _ in context.graph.outputs]
    return DirectFile(LoweredFile(path, inputs, outputs), hashlib.sha256(data).hexdigest(), overhead)


def _require_parity(context: ConversionContext, evidence: Evidence, profile: TargetProfile) -> None:
    """Hold the direct float file, behind the device's own adapter, to the canonical graph's answers."""
    artifact = backend_for(profile, LITERT, context).build(Recipe(route=DIRECT))
    rows = slice(0, PARITY_ROWS)
    expected = {name: value[rows] for name, value in evidence.choice_answers.items()}
    runtime = open_artifact(artifact, context.folder / "direct")
    try:
        found = run_rows(runtime, evidence.choice.take(rows).inputs)
    finally:
        runtime.close()
    difference = parity.compare(expected, found, runtime="direct", where=runtime.provider, decision="").max_abs
    limit = parity.tolerance(expected, parity.FLOAT32_RELATIVE)
    if difference > limit:
        raise ConversionError(direct_fault(difference, limit))


def _ahead(direct: FileFacts, lowered: FileFacts) -> str:
    """In what the direct file is ahead; empty where in nothing."""
    found = []
    if _alone(direct) < _alone(lowered):
        found.append(f"leaves {_alone(direct)} calls to the runtime instead of {_alone(lowered)}")
    if direct.bytes <= (1 - WORTH) * lowered.bytes:
        found.append(f"has {direct.bytes} bytes instead of {lowered.bytes}")
    return " and ".join(found)


def _alone(facts: FileFacts) -> int:
    """Pieces and operators that the runtime calls one by one; 0 where it does not tell."""
    return (facts.pieces or 0) + (facts.outside or 0)
