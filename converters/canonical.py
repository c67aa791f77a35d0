"""The canonical graph of a source model: what the passes make of it, held to the source's own answers."""

from __future__ import annotations

import msgspec

from converters.data.samples import Samples
from converters.frontends import Source
from converters.graph.graph import Graph
from converters.passes import CANONICAL_PASSES, RemoveDeadChannels, Simplify, run_pass
from converters.passes.channels.dead_channels import layer_channels
from converters.quality import parity
from converters.quality.parity import Parity


class Canonical(msgspec.Struct, frozen=True):
    """The canonical graph, and how it came about.

    Attributes:
        graph: With the batch that the source has.
        fixed: The same with a batch of 1: what computes shapes is constant then, and gone.
        steps: Parity with the source after each step.
        channels: Those that each layer made before dead ones were taken away, by its name.
    """

    graph: Graph
    fixed: Graph
    steps: tuple[Parity, ...]
    channels: dict[str, int]


def canonical_of(source: Source, samples: Samples, *, prune: bool) -> Canonical:
    """Run the passes; after every step the answers must still be the source model's own.

    Args:
        source: What was loaded.
        samples: What it is asked.
        prune: Take away channels that are proven dead.

    Raises:
        ParityError: a step changed the answers.
        ConversionError: a pass failed, or broke its contract.
    """
    expected = source.answers(samples.inputs)
    limit = parity.tolerance(expected, parity.FLOAT32_RELATIVE)
    graph, steps = source.graph, []

    def check(name: str, graph: Graph) -> None:
        found = parity.compare(expected, graph.run(samples.inputs), runtime=name, where="canonical graph", decision="")
        parity.require(found, limit)
        steps.append(found)

    check(f"read {source.format}", graph)
    channels: dict[str, int] = {}
    for one in CANONICAL_PASSES:
        if isinstance(one, RemoveDeadChannels):
            channels = layer_channels(graph)
            if not prune:
                continue
        result = run_pass(one, graph)
        if result.modified:
            graph = result.graph
            check(one.name, graph)
    fixed = run_pass(Simplify(), graph.with_batch(1)).graph
    check("fix the batch", fixed)
    return Canonical(graph, fixed, tuple(steps), channels)
