"""The float graphs that recipes start from: the canonical graph with the channels that a recipe's pruning leaves."""

from __future__ import annotations

from pathlib import Path

from converters.data.random_inputs import random_samples
from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.graph.store import GraphStore
from converters.passes.channels.dead_channels import LEAST_ROWS, DeadChannels
from converters.passes.contract import run_pass
from converters.passes.simplify import Simplify
from converters.passes.split_heads import Head, join
from converters.pruning.pruner import ChannelPruner
from converters.quality import parity
from converters.quality.noise import measure_noise
from edgekit.bundle.recipe import Recipe
from edgekit.errors import CalibrationError, ConversionError

PARITY_ROWS = 16
FREE, FIXED = "free batch", "batch of 1"

Pair = tuple[Graph, Graph]


class Bases:
    """The graphs that recipes start from, each with a free batch and with a batch of 1.

    Args:
        graph: The canonical float graph.
        fixed: The canonical graph with a batch of 1, simplified.
        samples: The calibration split; None without data.
        folder: Scratch folder.
        pruned: `graph` and `fixed` without dead channels; None makes them when they are first needed.
    """

    def __init__(
        self, graph: Graph, fixed: Graph, samples: Samples | None, folder: Path, pruned: Pair | None = None
    ) -> None:
        self.graph, self.fixed = graph, fixed
        self.dead_pair = pruned
        self._samples = samples
        self._dead: DeadChannels | None = None
        self._pruner: ChannelPruner | None = None
        self._kept = GraphStore(folder, "base", together=2)  # a pair
        self._faults: dict[Recipe, ConversionError] = {}

    @property
    def samples(self) -> Samples:
        """The calibration split.

        Raises:
            CalibrationError: there is no data.
        """
        if self._samples is None:
            raise CalibrationError("int8 needs samples to calibrate with", advice="Give --data with real samples.")
        return self._samples

    def dead_channels(self) -> DeadChannels:
        """The channels that are 0 on the whole calibration split. Raises as `samples`."""
        if self._dead is None:
            self._dead = DeadChannels(self.graph, self.samples)
        return self._dead

    def of(self, recipe: Recipe) -> Pair:
        """The graph that `recipe` starts from, with a free batch (where the source has one) and with a batch of 1.

        Raises:
            CalibrationError: there are too few samples to tell which channels can go.
            ConversionError: the recipe keeps channels that the graph does not have.
            ParityError: removing dead channels, or fixing the batch, changes the answers to calibration samples.
        """
        if recipe.lossy:
            return self._of_kept(recipe.base)
        if not recipe.pruned:
            return self.graph, self.fixed
        if self.dead_pair is None:
            self.dead_pair = self._without_dead()
        return self.dead_pair

    def store(self, recipe: Recipe, graph: Graph) -> None:
        """Store `graph`, which `ChannelPruner` made of `self.graph`, as what recipes with this base start from.

        Raises:
            ParityError: fixing the batch changes the answers.
        """
        fixed = run_pass(Simplify(), graph.with_batch(1)).graph
        require_parity(graph, fixed, "fix the batch", self._samples)
        self.store_pair(recipe, (graph, fixed))

    def store_fault(self, recipe: Recipe, fault: ConversionError) -> None:
        """Store why the base of `recipe` cannot be made."""
        self._faults[recipe.base] = fault

    def fault(self, recipe: Recipe) -> ConversionError | None:
        """Why the base of `recipe` cannot be made; None where it can."""
        return self._faults.get(recipe.base)

    def store_pair(self, recipe: Recipe, pair: Pair) -> None:
        """Store both graphs of the base of `recipe`."""
        self._kept[recipe.base, FREE], self._kept[recipe.base, FIXED] = pair

    def _of_kept(self, base: Recipe) -> Pair:
        if (base, FIXED) not in self._kept:
            if self._pruner is None or self._pruner.seed != (base.seed or 0):
                self._pruner = ChannelPruner(self.graph, self.samples, seed=base.seed or 0)
            self.store(base, self._pruner.pruned(base.kept or ()).graph)
        return self._kept[base, FREE], self._kept[base, FIXED]

    def _without_dead(self) -> Pair:
        dead = self.dead_channels()
        if dead.rows < LEAST_ROWS:
            raise CalibrationError(
                f"{dead.rows} calibration samples are too few to tell which channels are dead: expected at least "
                f"{LEAST_ROWS}; with that many, a channel that is active on 5 % of inputs is still taken for dead 1 "
                "time in 20",
                advice=f"Give --data with at least {5 * LEAST_ROWS} samples; a fifth of them are for calibration.",
            )
        free = dead.without()
        fixed = run_pass(Simplify(), free.with_batch(1)).graph
        require_parity(self.fixed, fixed, "without dead channels", self._samples)
        return free, fixed


def require_parity(
    before: Graph, after: Graph, name: str, samples: Samples | None, heads: tuple[Head, ...] = ()
) -> None:
    """Check that the step `name` did not change the answers. Raises ParityError."""
    rows = random_samples(before, PARITY_ROWS, 1) if samples is None else samples
    inputs = rows.take(slice(0, PARITY_ROWS)).inputs
    expected = before.run(inputs)
    answers = join(heads, after.run(inputs))
    limits = parity.tolerances(expected, parity.FLOAT32_RELATIVE)
    compared = parity.compare(expected, answers, runtime=name, where="canonical graph", decision="", limits=limits)
    if compared.excess > 1.0:  # then the limits for this model's own noise, which costs three more runs
        limits = parity.tolerances(expected, parity.FLOAT32_RELATIVE, measure_noise(before.run, inputs, expected))
        compared = parity.compare(expected, answers, runtime=name, where="canonical graph", decision="", limits=limits)
    parity.require(compared)
