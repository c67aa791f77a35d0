"""The workbench: what the backends of one conversion share, each part made once and when it is first asked for."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from converters.backends.contract import DirectFile, LoweredFile, PreparedInputs
from converters.backends.layers import layers_of, require_layers
from converters.calibration.calibrate import Calibration, calibrate, tensor_values
from converters.cost.overhead import Overhead
from converters.data.samples import Samples, random_samples
from converters.framework_process import TensorFlowProcess
from converters.graph.graph import Graph, packed, unpacked
from converters.passes.channels.dead_channels import LEAST_ROWS, DeadChannels
from converters.passes.contract import run_pass
from converters.passes.correct_bias import CorrectBias
from converters.passes.equalize import Equalize
from converters.passes.round_weights import RoundWeights
from converters.passes.simplify import Simplify
from converters.passes.split_heads import Head, SplitHeads, join
from converters.quality import parity
from edgekit.bundle.recipe import PRUNED, STATIC, UNPRUNED, Recipe
from edgekit.errors import CalibrationError, ConversionError
from edgekit.tensors import Array

KEPT_COARSER = 3  # 256 bins: what ranges need, in an eighth of the bytes
MOST_PREPARED = 8
PARITY_ROWS = 16
PROBE_ROWS = 4  # enough to tell tensors apart by their values


class ConversionContext:
    """What the backends of one conversion share; what takes long is done once, when first asked for.

    Args:
        graph: The canonical float graph.
        fixed: The same with a batch of 1, simplified for that.
        samples: The calibration split; None without data.
        child: TensorFlow's process.
        folder: Scratch space.
        calibration: What was measured before on the same graph and samples; None measures when it is first asked for.
        pruned: `graph` and `fixed` without the channels that are dead on the same samples; None looks for them when it
            is first asked for.
    """

    def __init__(
        self,
        graph: Graph,
        fixed: Graph,
        samples: Samples | None,
        child: TensorFlowProcess,
        folder: Path,
        calibration: Calibration | None = None,
        pruned: tuple[Graph, Graph] | None = None,
    ) -> None:
        self.graph = graph
        self.fixed = fixed
        self.child = child
        self.folder = folder
        self._samples = samples
        self._calibration = calibration
        self._given_pruned = pruned
        self._calibrations: dict[tuple[bool, bool, bool], Calibration] = {}
        self._prepared: dict[tuple[Any, ...], Graph] = {}
        self._lowered: dict[str, LoweredFile] = {}
        self._split: set[tuple[Head, ...]] = set()
        self.direct: DirectFile | None = None

    @property
    def samples(self) -> Samples:
        """The calibration split.

        Raises:
            CalibrationError: there is no data.
        """
        if self._samples is None:
            raise CalibrationError("int8 needs samples to calibrate with", advice="Give --data with real samples.")
        return self._samples

    @cached_property
    def dead(self) -> DeadChannels:
        """The channels that are 0 on the whole calibration split. Raises as `samples`."""
        return DeadChannels(self.graph, self.samples)

    @cached_property
    def _pruned(self) -> tuple[Graph, Graph]:
        """The free graph and the fixed one without dead channels."""
        if self._given_pruned is not None:
            return self._given_pruned
        if self.dead.rows < LEAST_ROWS:
            raise CalibrationError(
                f"{self.dead.rows} calibration samples do not tell which channels are dead: expected at least "
                f"{LEAST_ROWS}, on which one that wakes on 5 % of inputs is still taken for dead 1 time in 20",
                advice=f"Give --data with at least {5 * LEAST_ROWS} samples, of which a fifth are for calibration.",
            )
        free = self.dead.without()
        fixed = run_pass(Simplify(), free.with_batch(1)).graph
        self._require_same(self.fixed, fixed, "without dead channels")
        return free, fixed

    def start(self, graph: Graph, *, pruned: bool) -> Graph:
        """`graph`, the fixed one or the free one, or where `pruned` the same without dead channels.

        Raises:
            CalibrationError: there are too few samples to tell which are dead.
            ParityError: without them the answers to calibration samples change.
        """
        if not pruned:
            return graph
        free, fixed = self._pruned
        return fixed if graph is self.fixed else free

    @cached_property
    def calibration(self) -> Calibration:
        """What each tensor of the fixed graph takes on the calibration split. Raises as `calibrate`."""
        return self._calibration or calibrate(self.fixed, self.samples)

    def calibration_of(self, recipe: Recipe, graph: Graph) -> Calibration:
        """The calibration that ranges for `recipe` are read from; `graph` is the fixed one or the free one.

        Rounding and corrected biases hardly move ranges, equalization does: it is measured anew, once. So it is without
        dead channels, whose zeros are in the other counts.
        """
        if graph is self.fixed and not recipe.equalize and not recipe.pruned:
            return self.calibration
        key = (recipe.equalize, recipe.pruned, graph is self.fixed)
        if key not in self._calibrations:
            plain = Recipe(STATIC, equalize=recipe.equalize, prune=PRUNED if recipe.pruned else UNPRUNED)
            self._calibrations[key] = calibrate(self.prepared(plain, graph), self.samples)
        return self._calibrations[key]

    def kept_calibration(self, recipe: Recipe, graph: Graph) -> bytes:
        """What an artifact with static ranges keeps of its calibration; see Artifact."""
        return self.calibration_of(recipe, graph).coarser(KEPT_COARSER).to_bytes()

    def probes(self, graph: Graph) -> dict[str, Array]:
        """What each tensor of `graph`, whose batch is 1, takes on the first rows of the calibration split (R, ...)."""
        parts = list(tensor_values(graph, self.samples.take(slice(0, PROBE_ROWS))))
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def prepared(self, recipe: Recipe, graph: Graph) -> Graph:
        """`graph`, the fixed one or the free one, with the float weights that `recipe` wants.

        Dead channels are taken away, ranges evened out, weights rounded to 4 bits and biases corrected, in this order,
        where it says so.

        Raises:
            CalibrationError: it needs samples, or more of them than there are.
            ConversionError: it names a layer that is not there or that cannot have 4 bits.
            ParityError: evening out or taking away changed the answers.
        """
        start = self.start(graph, pruned=recipe.pruned)
        require_layers(recipe, layers_of(start))
        key = self.preparation(recipe, graph)
        if key not in self._prepared:
            found = self._evened(start) if recipe.equalize else start
            samples = self.samples if recipe.rounding == "gptq" and recipe.int4_layers else None
            found = run_pass(RoundWeights(recipe.int4_layers, samples), found).graph
            if recipe.correct_bias:
                step = CorrectBias(self.samples, exact=_exact(recipe), per_channel=recipe.per_channel)
                found = run_pass(step, found).graph
            self._keep_prepared(key, found)
        return self._prepared[key]

    def preparation(self, recipe: Recipe, graph: Graph) -> tuple[Any, ...]:
        """What of `recipe` the weights of `prepared` depend on: two with the same share them."""
        return (
            recipe.pruned,
            recipe.equalize,
            frozenset(recipe.int4_layers),
            recipe.rounding if recipe.int4_layers else "",
            frozenset(_exact(recipe)),
            recipe.correct_bias and ("per-channel" if recipe.per_channel else "per-tensor"),
            graph is self.fixed,
        )

    def is_prepared(self, recipe: Recipe, graph: Graph) -> bool:
        """True where `prepared` has nothing left to do."""
        return self.preparation(recipe, graph) in self._prepared or not (
            recipe.equalize or recipe.int4_layers or recipe.correct_bias
        )

    def take(self, recipe: Recipe, graph: Graph, prepared: Graph) -> None:
        """Take `prepared`, which another workbench made, for what `self.prepared` would give."""
        self._keep_prepared(self.preparation(recipe, graph), prepared)

    def _keep_prepared(self, key: tuple[Any, ...], graph: Graph) -> None:
        self._prepared[key] = graph
        while len(self._prepared) > MOST_PREPARED:  # each holds all weights
            self._prepared.pop(next(iter(self._prepared)))

    def _evened(self, graph: Graph) -> Graph:
        found = run_pass(Equalize(self._samples), graph).graph
        self._require_same(graph, found, "equalize")
        return found

    def split(self, recipe: Recipe, graph: Graph) -> tuple[Graph, tuple[Head, ...]]:
        """`graph`, prepared and with a batch of 1, with its joined outputs taken apart for static int8, and which.

        The direct route's file comes from the source, whose outputs stay as they are.

        Raises:
            CalibrationError: it needs samples and there are none.
            ParityError: taking apart changed the answers.
        """
        if recipe.precision != STATIC or recipe.direct:
            return graph, ()
        step = SplitHeads(self.calibration_of(recipe, self.fixed).ranges())
        heads = step.heads(graph)
        found = run_pass(step, graph).graph
        if heads and heads not in self._split:  # it touches no weights: one check does for every recipe
            self._require_same(graph, found, step.name, heads)
            self._split.add(heads)
        return found, heads

    def to_lower(self, recipe: Recipe) -> Graph:
        """What TensorFlow's process makes a float .tflite of for `recipe`. Raises as `prepared` and `split`."""
        return self.split(recipe, self.prepared(recipe, self.fixed))[0]

    def prepared_inputs(self, recipe: Recipe, graph: Graph, *, lower: bool) -> PreparedInputs:
        """What `recipe` needs beyond `graph`, the fixed one or the free one, for copies of this in other processes.

        Args:
            lower: A float .tflite too.

        Raises:
            As `prepared`, `split` and `lowered`.
        """
        made = self.prepared(recipe, graph)
        lowered = self.lowered(self.to_lower(recipe)) if lower else None
        own_ranges = recipe.precision == STATIC and (recipe.equalize or recipe.pruned or graph is not self.fixed)
        return PreparedInputs(
            None if made is self.start(graph, pruned=recipe.pruned) else packed(made),
            np.memmap(lowered.path, np.uint8, "r") if lowered else None,
            (lowered.input_permutes, lowered.output_permutes) if lowered else ([], []),
            self.calibration_of(recipe, graph) if own_ranges else None,
        )

    def prepare_inputs(self, recipe: Recipe, graph: Graph, prepared_inputs: PreparedInputs) -> None:
        """Take what another workbench made for `recipe`, so that it need not be made here."""
        if prepared_inputs.prepared is not None:
            self.take(recipe, graph, unpacked(prepared_inputs.prepared))
        if prepared_inputs.calibration is not None:
            self._calibrations[recipe.equalize, recipe.pruned, graph is self.fixed] = prepared_inputs.calibration
        if prepared_inputs.lowered is not None:
            self._keep_lowered(self.to_lower(recipe), prepared_inputs.lowered.tobytes(), *prepared_inputs.permutes)

    def copy_with(self, child: TensorFlowProcess, folder: Path) -> ConversionContext:
        """One with the same graphs and samples, and nothing made of them yet but the calibration."""
        known = self.known_calibration, self.known_pruned
        return ConversionContext(self.graph, self.fixed, self._samples, child, folder, *known)

    @property
    def given_samples(self) -> Samples | None:
        """The calibration split; None without data."""
        return self._samples

    @property
    def known_calibration(self) -> Calibration | None:
        """The calibration where it was given or measured; None where it was not."""
        return self._calibration or self.__dict__.get("calibration")

    @property
    def known_pruned(self) -> tuple[Graph, Graph] | None:
        """The graph and the fixed one without dead channels; None where nobody has asked for them."""
        return self._given_pruned or self.__dict__.get("_pruned")

    def _require_same(self, before: Graph, after: Graph, name: str, heads: tuple[Head, ...] = ()) -> None:
        """Hold a step that must not change answers to that."""
        rows = random_samples(before.inputs, PARITY_ROWS, 1) if self._samples is None else self._samples
        inputs = rows.take(slice(0, PARITY_ROWS)).inputs
        expected = before.run(inputs)
        answers = join(heads, after.run(inputs))
        found = parity.compare(expected, answers, runtime=name, where="canonical graph", decision="")
        parity.require(found, parity.tolerance(expected, parity.FLOAT32_RELATIVE))

    def float_file(self, recipe: Recipe, graph: Graph) -> LoweredFile:
        """The float .tflite that `recipe` starts from: `graph`, prepared for it, lowered, or the direct one.

        Raises:
            As `lowered`.
            ConversionError: it asks for the direct route and there is none.
        """
        if not recipe.direct:
            return self.lowered(graph)
        if self.direct is None:
            raise ConversionError("the recipe asks for the direct route, and there is none from this source")
        return self.direct.file

    def overhead(self, recipe: Recipe) -> Overhead:
        """What running `recipe`'s artifact takes that its graph does not show."""
        return self.direct.overhead if recipe.direct and self.direct else Overhead()

    def lowered(self, graph: Graph) -> LoweredFile:
        """`graph`, one with a batch of 1, as a float .tflite. Raises as the lowering."""
        digest = _digest(graph)
        if digest not in self._lowered:
            found = self.child.call("lower", model=graph.to_bytes())
            self._keep_lowered(graph, found.data, found.input_permutes, found.output_permutes)
        return self._lowered[digest]

    def _keep_lowered(
        self, graph: Graph, data: bytes, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]
    ) -> None:
        digest = _digest(graph)
        path = self.folder / f"float32-{digest}.tflite"
        path.write_bytes(data)
        self._lowered[digest] = LoweredFile(path, inputs, outputs)


def _exact(recipe: Recipe) -> tuple[str, ...]:
    """Layers that the correction of biases takes as they are; without it, those that are rounded to 4 bits."""
    return (*recipe.float_layers, *recipe.int4_layers) if recipe.correct_bias else recipe.int4_layers


def _digest(graph: Graph) -> str:
    return hashlib.sha256(graph.to_bytes()).hexdigest()[:16]
