"""Runs the passes that make the canonical graph, and checks its answers against the source model after each pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import msgspec
import numpy as np

from converters.data.samples import Samples
from converters.frontends import Source
from converters.graph.graph import Graph
from converters.graph.rounding import jumps
from converters.noise import Noise, noise_of
from converters.passes import CANONICAL_PASSES, RemoveDeadChannels, Simplify, run_pass
from converters.passes.channels.dead_channels import layer_channels
from converters.quality import parity
from converters.quality.parity import Parity
from edgekit.errors import ConversionError
from edgekit.tensors import Array

# Advice where the reading of a format changed the answers, by step; other steps are edgekit's own.
EXPORTER = {
    "read pt2": "PyTorch's exporter to ONNX gives a model with other answers than the program. Writes into parts of a "
    "tensor (x[...] = value) are a known cause: write torch.where or torch.cat instead, and export the program again."
}


class Canonical(msgspec.Struct, frozen=True):
    """The canonical graph, with the results of its parity checks.

    Attributes:
        graph: The graph with the batch of the source model.
        fixed: The same graph with a batch of 1; operators that compute shapes are constant then, and removed.
        steps: Parity with the source after each step.
        channels: Number of channels of each layer before dead ones were removed, by layer name.
        noise: The noise of the source, which widens the limits of parity checks.
    """

    graph: Graph
    fixed: Graph
    steps: tuple[Parity, ...]
    channels: dict[str, int]
    noise: Noise


def canonical_of(source: Source, samples: Samples, *, prune: bool) -> Canonical:
    """Run the passes. After every step, the answers must still be those of the source model.

    Args:
        source: The loaded model.
        samples: Inputs of the parity checks.
        prune: Remove channels that are proven dead.

    Raises:
        ParityError: a step changed the answers.
        ConversionError: a pass failed, or broke its contract; or the source's own answers are not finite.
    """
    expected = source.answers(samples.inputs)
    _require_finite(expected)
    noise = noise_of(source, samples, expected)
    relative = parity.SOURCE_RELATIVE[source.precision]
    limits = parity.tolerances(expected, relative, noise.by_output)
    graph, steps = source.graph, []

    def check(name: str, graph: Graph) -> None:
        answers = graph.run(samples.inputs)
        compare = functools.partial(
            parity.compare, expected, answers, runtime=name, where="canonical graph", decision=""
        )
        compared = compare(limits=limits)
        if compared.excess > 1.0:  # elements that jump with the rounding are no fault of the step
            jumping = jumps(source.graph, samples.inputs, expected, limits)
            compared = compare(limits=parity.with_noise(limits, jumping))
        parity.require(compared, advice=EXPORTER.get(name, parity.FAULT))
        steps.append(compared)

    check(f"read {source.format}", graph)
    if relative > parity.FLOAT32_RELATIVE:  # only the reading is compared with answers in half precision
        expected = graph.run(samples.inputs)
        limits = parity.tolerances(expected, parity.FLOAT32_RELATIVE, noise.by_output)
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
    return Canonical(graph, fixed, tuple(steps), channels, noise)


def _require_finite(answers: Mapping[str, Array]) -> None:
    names = [name for name, value in answers.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if names:
        raise ConversionError(
            f"the model's own answers to these samples hold NaN or infinity in output {', '.join(names)}: nothing can "
            "be compared with them",
            advice="Give --data with samples whose answers are finite; or take the output from before the layer that "
            "makes them infinite, such as a mask of the scores (--cut OUTPUT[,OUTPUT] for ONNX).",
        )
