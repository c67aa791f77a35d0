"""What an artifact costs on a target. So far an estimate: multiply-adds, weighted by how fast the target does them."""

from __future__ import annotations

from converters.graph import Graph
from edgekit.manifest import Cost
from edgekit.recipe import Recipe
from edgekit.targets import TargetProfile

UNIT = "float32 multiply-adds"


def estimate(graph: Graph, profile: TargetProfile, recipe: Recipe) -> Cost:
    """The cost of one row in float32 multiply-adds of the same device: a network's ``1/speed`` share by precision.

    It ranks candidates of one network on one target; it is no time.
    """
    macs = sum(graph.macs.values())
    return Cost("estimate", macs / profile.speed.get(recipe.precision, 1.0), UNIT)


def memory_mib(graph: Graph, artifact_bytes: int) -> int:
    """About what a loaded artifact needs in MiB, rounded up: its weights as they lie and unpacked, and activations."""
    one = graph.with_batch(1)
    sizes = []
    for node in one.nodes:
        shape = one.shapes.get(node.output[0], ())
        count = 1
        for size in shape:
            count *= size or 1
        sizes.append(count * 4)
    largest = sum(sorted(sizes)[-3:])
    return -(-(artifact_bytes + graph.parameters * 4 + largest) // (1024 * 1024))
