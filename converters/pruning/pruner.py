"""Prunes one graph: ranks channels, measures each family alone, and gives levels, which say what each layer keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import msgspec
from threadpoolctl import threadpool_limits

from converters.data.samples import Samples
from converters.graph.graph import Graph, label
from converters.passes.channels.groups import Channels, without
from converters.passes.channels.rules import channels_of
from converters.passes.stepping import chunks_of
from converters.pruning.allocation import Point, Step, path, removed_after, whole_blocks
from converters.pruning.families import (
    Family,
    families_of,
    frozen_layers,
    kept_by_layer,
    removed_by_names,
    removed_channels,
)
from converters.pruning.kept import numbers_by_layer
from converters.pruning.ranking import Ranking, compensated, rank
from converters.pruning.refit import FOLDS, LayerFit, refit
from converters.quality.divergence import divergence
from edgekit.errors import CalibrationError
from edgekit.tensors import Array

RATIOS = (0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5625, 0.625, 0.75)  # of a family's units
FEW_RATIOS = (0.125, 0.25, 0.5, 0.75)
TABLE_MACS = 2e11  # of all measurements of families
TABLE_ROWS = 64
LEAST_ROWS = 10  # fewer calibration rows cannot say which channels matter
HALVINGS = 12  # of the search for a share along the path

Costs = Callable[[Graph], float]


class Level(msgspec.Struct, frozen=True):
    """The channels that each layer keeps so that about `share` of the cost is left.

    Attributes:
        share: The share of the cost that was aimed at.
        kept: The kept channels of each layer that loses some, as in ``0-3,7``, by the layer's name.
        left: The share that is really left, of the whole graph.
    """

    share: float
    kept: tuple[tuple[str, str], ...]
    left: float


class PrunedGraph(msgspec.Struct, frozen=True):
    """A pruned and refitted graph, with the fits, and its divergence from the original on the calibration rows."""

    graph: Graph
    fits: tuple[LayerFit, ...]
    divergence: float


class ChannelPruner:
    """Prunes `graph` by what its layers read on `samples`.

    Args:
        graph: The canonical graph.
        samples: The calibration split.
        judged: The output that holds class scores, empty without classes, and the outputs that count; None for all.
        seed: Seed of the sampled positions.

    Raises:
        CalibrationError: There are fewer than `LEAST_ROWS` rows.
    """

    def __init__(
        self, graph: Graph, samples: Samples, judged: tuple[str, Collection[str] | None] = ("", None), seed: int = 0
    ) -> None:
        if len(samples) < LEAST_ROWS:
            raise CalibrationError(
                f"{len(samples)} calibration samples are too few to choose channels by: expected at least {LEAST_ROWS}",
                advice=f"Give --data with at least {5 * LEAST_ROWS} samples; a fifth of them are for calibration.",
            )
        self.graph = graph
        self.samples = samples
        self.judged = judged
        self.seed = seed
        self._paths: dict[str, list[Step]] = {}

    @cached_property
    def families(self) -> list[Family]:
        """The families with channels that can go."""
        return families_of(self.channels)

    @cached_property
    def frozen(self) -> dict[str, str]:
        """The reason why a layer keeps all its channels, by its name."""
        return frozen_layers(self.channels)

    def level(self, share: float, costs: Costs, name: str, block: int = 1) -> Level:
        """The level that leaves about `share` of the cost.

        Args:
            share: From 0 to 1.
            costs: The cost of a graph, in any unit.
            name: Name of this cost, under which the path is stored.
            block: Dense layers and pointwise convolutions keep a multiple of so many channels, where they have at least
                twice as many.
        """
        with threadpool_limits(1):
            if name not in self._paths:
                self._paths[name] = path([self._points(number, costs) for number in range(len(self.families))])
            steps = self._paths[name]
            whole, low, high = costs(self.graph), 0.0, float(len(steps))
            removed = self._removed(steps, high, block)
            left = costs(without(self.channels, removed)) / whole
            for _ in range(HALVINGS if left < share else 0):
                middle = (low + high) / 2
                tried = self._removed(steps, middle, block)
                part = costs(without(self.channels, tried)) / whole
                if part > share:
                    low = middle
                else:
                    high, removed, left = middle, tried, part
            return Level(share, kept_by_layer(self.channels, removed), left)

    def pruned(self, kept: Sequence[tuple[str, str]]) -> PrunedGraph:
        """The graph whose layers keep `kept`, with all later layers fitted to the original.

        Raises:
            RecipeError: `kept` is not valid.
            ConversionError: The layers or channels do not fit the graph.
        """
        removed = removed_by_names(self.channels, numbers_by_layer(kept))
        with threadpool_limits(1):
            made = refit(self.channels, removed, without(self.channels, removed), self._chunks, self.seed)
            expected = {name: value[: len(made.answers[name])] for name, value in self._expected.items()}
            return PrunedGraph(made.graph, made.fits, divergence(expected, made.answers, *self.judged))

    @cached_property
    def channels(self) -> Channels:
        """The channels of the graph."""
        return channels_of(self.graph)

    @cached_property
    def _chunks(self) -> list[dict[str, Array]]:
        return chunks_of(self.graph, self.samples, least=2 * FOLDS)

    @cached_property
    def _expected(self) -> dict[str, Array]:
        rows = sum(len(next(iter(chunk.values()))) for chunk in self._chunks)
        return self.graph.run(self.samples.take(slice(0, rows)).inputs)

    @cached_property
    def _ranking(self) -> Ranking:
        return rank(self.channels, self.families, self._chunks, self.seed)

    @cached_property
    def _divergences(self) -> list[dict[int, float]]:
        """For each family alone, the divergence by number of removed units.

        It is measured where that takes few multiply-adds; else it is the lost share of the readers' output energy.
        """
        macs, families = sum(self.graph.macs.values()) or 1, len(self.families)
        rows = min(TABLE_ROWS, len(next(iter(self._expected.values()))))
        ratios = RATIOS if macs * rows * families * len(RATIOS) <= TABLE_MACS else FEW_RATIOS
        if macs * rows * families * len(ratios) > TABLE_MACS:
            return [_energies(one.costs) for one in self._ranking.eliminations]
        inputs = self.samples.take(slice(0, rows)).inputs
        expected = {name: value[:rows] for name, value in self._expected.items()}
        table = []
        for number, family in enumerate(self.families):
            found = {}
            for count in sorted({round(ratio * len(family.units)) for ratio in ratios} - {0}):
                removed = self._removed_of(number, count)
                small = without(self.channels, removed)
                answers = compensated(self.channels, removed, small, self._ranking.readers).run(inputs)
                found[count] = divergence(expected, answers, *self.judged)
            table.append(found)
        return table

    def _points(self, number: int, costs: Costs) -> list[Point]:
        whole = costs(self.graph)
        return [
            Point(count, lost, 1.0 - costs(without(self.channels, self._removed_of(number, count))) / whole)
            for count, lost in self._divergences[number].items()
        ]

    def _removed_of(self, number: int, count: int) -> Array:
        return self._removed_counts([count if index == number else 0 for index in range(len(self.families))])

    def _removed(self, steps: Sequence[Step], position: float, block: int) -> Array:
        counts = removed_after(steps, position, len(self.families))
        return self._removed_counts(
            [
                whole_blocks(count, family.width, block if self._products.intersection(family.layers) else 1)
                for count, family in zip(counts, self.families, strict=True)
            ]
        )

    @cached_property
    def _products(self) -> set[str]:
        """The layers that are one matrix product: dense ones and pointwise convolutions."""
        constants = self.graph.constants
        return {
            label(node)
            for node in self.graph.nodes
            if node.op_type in ("Gemm", "MatMul")
            or (
                node.op_type == "Conv" and node.input[1] in constants and set(constants[node.input[1]].shape[2:]) == {1}
            )
        }

    def _removed_counts(self, counts: Sequence[int]) -> Array:
        orders = [one.order for one in self._ranking.eliminations]
        return removed_channels(self.channels, self.families, orders, counts)


def _energies(costs: Array) -> dict[int, float]:
    counts = sorted({round(ratio * len(costs)) for ratio in RATIOS} - {0})
    return {count: float(costs[count - 1]) for count in counts}


def parameters(graph: Graph) -> float:
    """The cost of a graph where its size counts: the number of its parameters."""
    return float(graph.parameters)
