"""Obstacles of targets, found before any candidate is made: operators that a target cannot run."""

from __future__ import annotations

from collections.abc import Mapping

from converters.backends import direct_route_fits
from converters.backends.accelerators import accelerators, require_fit
from converters.candidates.direct_route import require_targets
from converters.cost.estimate import RECURRENT
from converters.framework_process import TensorFlowProcess
from converters.frontends import Source
from converters.graph.graph import Graph
from converters.lowering import Lowered
from converters.passes import CANONICAL_PASSES, RemoveDeadChannels, Simplify, run_pass
from converters.passes.plain_activations import PlainActivations
from converters.plan import ConversionPlan
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError
from edgekit.runtimes import LITERT


def obstacles(plan: ConversionPlan, source: Source, child: TensorFlowProcess) -> Mapping[str, ConversionError]:
    """Why targets cannot run the model, by target; empty where none is found.

    For targets with LiteRT the graph is lowered once, as for the float candidate; on a CPU recurrent layers stay loops,
    which a conversion tries too. Where the source's own converter may do without the lowered file, on a CPU, there is
    no obstacle. Answers are not compared.
    """
    found: dict[str, ConversionError] = {}
    lowered: dict[tuple[bool, str], Lowered | ConversionError] = {}
    for profile, runtime in plan.profiles:
        try:
            require_targets([(profile, runtime)], source)
            if runtime != LITERT or (source.direct is not None and direct_route_fits(profile, runtime)):
                continue
            loops = not profile.accelerator and any(node.op_type in RECURRENT for node in source.graph.nodes)
            key = (loops, profile.accelerator)
            if key not in lowered:
                lowered[key] = _lowered(source.graph, child, loops=loops, accelerator=profile.accelerator)
            file = lowered[key]
            if isinstance(file, ConversionError):
                raise file
            _require_accelerator(file, profile)
        except ConversionError as error:
            found[profile.name] = error
    return found


def _lowered(graph: Graph, child: TensorFlowProcess, *, loops: bool, accelerator: str) -> Lowered | ConversionError:
    """The float file of the canonical graph, or why there is none."""
    try:
        for one in CANONICAL_PASSES:
            if not isinstance(one, RemoveDeadChannels):
                graph = run_pass(one, graph).graph
        fixed = run_pass(Simplify(), graph.with_batch(1)).graph
        if accelerator:
            fixed = run_pass(PlainActivations(accelerators()[accelerator].operators), fixed).graph
        lowered: Lowered = child.call("lower", model=fixed.to_bytes(), loops=loops)
        return lowered
    except ConversionError as error:
        return error


def _require_accelerator(lowered: Lowered, profile: TargetProfile) -> None:
    if profile.accelerator:
        require_fit(lowered.data, accelerators()[profile.accelerator], quantized=False)
