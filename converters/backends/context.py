"""The state that all backends of one conversion share. Each part is computed once, when it is first needed."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters.backends.bases import Bases, require_parity
from converters.backends.contract import DirectFile, LoweredFile, PreparedInputs
from converters.backends.layers import layers_of, require_layers
from converters.backends.onnx_weights import integer_tables
from converters.backends.tflite.ranges import Fingerprint, fingerprints
from converters.calibration.calibrate import Calibration, calibrate, tensor_values
from converters.cost.overhead import Overhead
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.graph.graph import Graph, packed, unpacked
from converters.graph.store import GraphStore
from converters.machine import return_memory
from converters.passes.channels.dead_channels import DeadChannels
from converters.passes.contract import run_pass
from converters.passes.correct_bias import CorrectBias
from converters.passes.equalize import Equalize
from converters.passes.round_weights import RoundWeights
from converters.passes.split_heads import Head, SplitHeads
from edgekit.bundle.recipe import DYNAMIC, STATIC, WEIGHTS, Recipe
from edgekit.errors import CalibrationError, ConversionError
from edgekit.tensors import Array

COARSER_STEPS = 3  # 256 bins instead of 2048: precise enough for ranges, in an eighth of the bytes
MAX_PREPARED = 8
PROBE_ROWS = 4  # enough rows to tell tensors apart by their values


class PackedContext(msgspec.Struct, frozen=True):
    """A `ConversionContext` on its way to another process.

    Attributes:
        graph, fixed: Serialized models (N,) uint8.
        samples: The calibration split; None without data.
        calibration: Calibration of the fixed graph; None where it cannot be measured.
        pruned: `graph` and `fixed` without dead channels; empty where they were not made.
        folder: Scratch folder of the original.
    """

    graph: Array
    fixed: Array
    samples: Samples | None
    calibration: Calibration | None
    pruned: tuple[Array, ...]
    folder: str


class ConversionContext:
    """The state that all backends of one conversion share. Slow parts are computed once, when they are first needed.

    A pickled context holds the graphs, the samples, the calibration and the pruned graphs. A copy has a TensorFlow
    process of its own.

    Args:
        graph: The canonical float graph.
        fixed: The canonical graph with a batch of 1, simplified.
        samples: The calibration split; None without data.
        child: TensorFlow's process.
        folder: Scratch folder.
        calibration: Calibration of `fixed` on `samples`; None measures it when it is first needed.
        pruned: `graph` and `fixed` without the channels that are dead on `samples`; None makes them when they are first
            needed.
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
        self._given = samples
        self._calibration = calibration
        self.bases = Bases(graph, fixed, samples, folder, pruned)
        self._direct: DirectFile | None = None
        self._packed: PackedContext | None = None
        self._calibrations: dict[tuple[bool, Recipe, bool], Calibration] = {}
        self._prepared = GraphStore(folder, "prepared", most=MAX_PREPARED)
        self._unchanged: set[tuple[Any, ...]] = set()  # keys of recipes that change no weights
        self._lowered: dict[str, LoweredFile] = {}
        self._checked_heads: set[tuple[Head, ...]] = set()

    @property
    def samples(self) -> Samples:
        """The calibration split.

        Raises:
            CalibrationError: there is no data.
        """
        return self.bases.samples

    @property
    def has_samples(self) -> bool:
        """False without data."""
        return self._given is not None

    @property
    def direct(self) -> DirectFile | None:
        """The file of the direct route; None where there is none."""
        return self._direct

    @property
    def copied_bytes(self) -> int:
        """Memory of the graphs and samples that a copy holds, in bytes."""
        samples = self._given.inputs.values() if self._given else ()
        graphs = (self.graph, self.fixed, *(self.bases.dead_pair or ()))
        return sum(int(one.model.ByteSize()) for one in graphs) + sum(array.nbytes for array in samples)

    def use_direct(self, direct: DirectFile | None) -> None:
        """Use `direct` as the float file of recipes that take the direct route; None removes it."""
        self._direct = direct

    def dead_channels(self) -> DeadChannels:
        """The channels that are 0 on the whole calibration split. Raises as `samples`."""
        return self.bases.dead_channels()

    def base_graph(self, graph: Graph, recipe: Recipe) -> Graph:
        """`graph` (`self.graph` or `self.fixed`) with the channels that the pruning of `recipe` leaves.

        Raises:
            As `Bases.of`.
        """
        return self.bases.of(recipe)[1 if graph is self.fixed else 0]

    def calibration(self) -> Calibration:
        """Histograms of each tensor of the fixed graph on the calibration split. Raises as `calibrate`."""
        if self._calibration is None:
            self._calibration = calibrate(self.fixed, self.samples)
        return self._calibration

    def calibration_of(self, recipe: Recipe, graph: Graph) -> Calibration:
        """The calibration for the ranges of `recipe`; `graph` is `self.graph` or `self.fixed`.

        Rounding and bias correction hardly move ranges, so these recipes share one calibration. Equalization moves
        them, and dead channels add zeros to the counts; for both, the calibration is measured again, once.
        """
        if graph is self.fixed and not recipe.equalize and not recipe.pruned:
            return self.calibration()
        key = (recipe.equalize, recipe.base, graph is self.fixed)
        if key not in self._calibrations:
            plain = msgspec.structs.replace(recipe.base, precision=STATIC, equalize=recipe.equalize)
            self._calibrations[key] = calibrate(self.prepared(plain, graph), self.samples)
        return self._calibrations[key]

    def calibration_bytes(self, recipe: Recipe, graph: Graph) -> bytes:
        """The calibration that an artifact with static ranges carries; see `Artifact.calibration`."""
        return self.calibration_of(recipe, graph).coarser(COARSER_STEPS).to_bytes()

    def probes(self, graph: Graph) -> dict[str, Fingerprint]:
        """Each tensor of `graph`, whose batch is 1, on the first rows of the calibration split."""
        return fingerprints(tensor_values(graph, self.samples.take(slice(0, PROBE_ROWS))))

    def prepared(self, recipe: Recipe, graph: Graph) -> Graph:
        """`graph` (`self.graph` or `self.fixed`) with the float weights that `recipe` asks for.

        The steps, where the recipe has them, in this order: remove dead channels, equalize ranges, round weights to
        4 bits, correct biases.

        Raises:
            CalibrationError: the recipe needs samples, or more samples than there are.
            ConversionError: the recipe names an unknown layer, or a layer that cannot have 4 bits.
            ParityError: equalization or pruning changed the answers.
        """
        base = self.base_graph(graph, recipe)
        require_layers(recipe, layers_of(base))
        key = self.preparation_key(recipe, graph)
        if key in self._unchanged:
            return base
        if key not in self._prepared:
            made = self._equalized(base) if recipe.equalize else base
            samples = self.samples if recipe.rounding == "gptq" and recipe.int4_layers else None
            made = run_pass(RoundWeights(recipe.int4_layers, samples), made).graph
            if recipe.correct_bias:
                step = CorrectBias(self.samples, exact=_exact_layers(recipe), per_channel=recipe.per_channel)
                made = run_pass(step, made).graph
            if made is base:  # a stored one would become a second copy of its weights
                self._unchanged.add(key)
                return base
            self._prepared[key] = made
        return self._prepared[key]

    def preparation_key(self, recipe: Recipe, graph: Graph) -> tuple[Any, ...]:
        """The parts of `recipe` that the weights of `prepared` depend on. Recipes with the same key share weights."""
        return (
            recipe.base,
            recipe.equalize,
            frozenset(recipe.int4_layers),
            recipe.rounding if recipe.int4_layers else "",
            frozenset(_exact_layers(recipe)),
            recipe.correct_bias and ("per-channel" if recipe.per_channel else "per-tensor"),
            graph is self.fixed,
        )

    def is_prepared(self, recipe: Recipe, graph: Graph) -> bool:
        """True where `prepared` returns at once: the graph was made before, or the recipe changes no weights."""
        key = self.preparation_key(recipe, graph)
        changes = recipe.equalize or recipe.int4_layers or recipe.correct_bias
        return not changes or key in self._prepared or key in self._unchanged

    def store_prepared(self, recipe: Recipe, graph: Graph, prepared: Graph) -> None:
        """Store `prepared`, which another context made, as the result of `self.prepared(recipe, graph)`."""
        self._prepared[self.preparation_key(recipe, graph)] = prepared

    def _equalized(self, graph: Graph) -> Graph:
        made = run_pass(Equalize(self._given), graph).graph
        require_parity(graph, made, "equalize", self._given)
        return made

    def split_heads(self, recipe: Recipe, graph: Graph) -> tuple[Graph, tuple[Head, ...]]:
        """`graph` (prepared, batch 1) with its joined outputs split for static int8, and the outputs that were split.

        For other kinds of int8, tables of embeddings become integers instead: the quantizer would leave them float.
        Files of the direct route come from the source model; their outputs are not split.

        Raises:
            CalibrationError: the recipe needs samples and there are none.
            ParityError: splitting changed the answers.
        """
        if recipe.precision in (DYNAMIC, WEIGHTS) and not recipe.direct:
            return integer_tables(graph), ()
        if recipe.precision != STATIC or recipe.direct:
            return graph, ()
        step = SplitHeads(self.calibration_of(recipe, self.fixed).ranges())
        heads = step.heads(graph)
        made = run_pass(step, graph).graph
        if heads and heads not in self._checked_heads:  # the step changes no weights: one check serves every recipe
            require_parity(graph, made, step.name, self._given, heads)
            self._checked_heads.add(heads)
        return made, heads

    def graph_to_lower(self, recipe: Recipe) -> Graph:
        """The graph that is lowered to a float .tflite for `recipe`. Raises as `prepared` and `split_heads`."""
        return self.split_heads(recipe, self.prepared(recipe, self.fixed))[0]

    def prepared_inputs(self, recipe: Recipe, graph: Graph, *, lower: bool) -> PreparedInputs:
        """Inputs that a copy of this context in another process needs for `recipe`, beyond the packed context.

        Args:
            recipe: The recipe to build there.
            graph: `self.graph` or `self.fixed`.
            lower: Include the float .tflite.

        Raises:
            As `prepared`, `split_heads` and `lowered`.
        """
        made = self.prepared(recipe, graph)
        lowered = self.lowered(self.graph_to_lower(recipe)) if lower else None
        own_ranges = recipe.precision == STATIC and (recipe.equalize or recipe.pruned or graph is not self.fixed)
        return PreparedInputs(
            None if made is self.base_graph(graph, recipe) else packed(made),
            np.memmap(lowered.path, np.uint8, "r") if lowered else None,
            (lowered.input_permutes, lowered.output_permutes) if lowered else ([], []),
            self.calibration_of(recipe, graph) if own_ranges else None,
            self.packed_base(recipe),
        )

    def packed_base(self, recipe: Recipe) -> tuple[Array, ...]:
        """The graphs that `recipe` starts from, as arrays; empty where every copy of this context has them."""
        return tuple(map(packed, self.bases.of(recipe))) if recipe.lossy else ()

    def store_base(self, recipe: Recipe, graphs: tuple[Array, ...]) -> None:
        """Store the graphs that `packed_base` gave in another context."""
        if graphs:
            self.bases.store_pair(recipe, (unpacked(graphs[0]), unpacked(graphs[1])))

    def store_inputs(self, recipe: Recipe, graph: Graph, prepared_inputs: PreparedInputs) -> None:
        """Store the inputs that another context prepared for `recipe`, so that they are not computed again here."""
        self.store_base(recipe, prepared_inputs.base)
        if prepared_inputs.prepared is not None:
            self.store_prepared(recipe, graph, unpacked(prepared_inputs.prepared))
        if prepared_inputs.calibration is not None:
            self._calibrations[recipe.equalize, recipe.base, graph is self.fixed] = prepared_inputs.calibration
        if prepared_inputs.lowered is not None:
            lowered = prepared_inputs.lowered.tobytes()
            self._store_lowered(self.graph_to_lower(recipe), lowered, *prepared_inputs.permutes)

    def copy_with(self, child: TensorFlowProcess, folder: Path) -> ConversionContext:
        """A context with the same graphs, samples, calibration and pruned graphs, and nothing else computed yet."""
        return ConversionContext(
            self.graph, self.fixed, self._given, child, folder, self._calibration, self.bases.dead_pair
        )

    def packed(self) -> PackedContext:
        """The context as plain arrays, which joblib maps into other processes.

        The arrays are the same objects on each call, so that joblib recognizes the arrays that it has mapped already.
        They are made anew once the pruned graphs exist.
        """
        if self._packed is None or bool(self.bases.dead_pair) != bool(self._packed.pruned):
            with contextlib.suppress(CalibrationError):  # each copy raises the same error where it needs ranges
                self.calibration()  # measured here once, so that no copy measures it
            self._packed = PackedContext(
                packed(self.graph),
                packed(self.fixed),
                self._given,
                self._calibration,
                tuple(map(packed, self.bases.dead_pair)) if self.bases.dead_pair else (),
                str(self.folder),
            )
        return self._packed

    @classmethod
    def from_packed(cls, state: PackedContext) -> ConversionContext:
        """The context that `packed` made `state` of, with a TensorFlow process of its own."""
        pruned = (unpacked(state.pruned[0]), unpacked(state.pruned[1])) if state.pruned else None
        return cls(
            unpacked(state.graph),
            unpacked(state.fixed),
            state.samples,
            TensorFlowProcess(),
            Path(state.folder),
            state.calibration,
            pruned,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ConversionContext.from_packed, (self.packed(),)

    def float_file(self, recipe: Recipe, graph: Graph) -> LoweredFile:
        """The float .tflite that `recipe` starts from: the lowered `graph`, or the direct file.

        Raises:
            As `lowered`.
            ConversionError: the recipe takes the direct route and there is no direct file.
        """
        if not recipe.direct:
            return self.lowered(graph)
        if self._direct is None:
            raise ConversionError("the recipe takes the direct route, and this source model has no direct file")
        return self._direct.file

    def overhead(self, recipe: Recipe) -> Overhead:
        """Run-time cost of `recipe`'s artifact that its graph does not show."""
        return self._direct.overhead if recipe.direct and self._direct else Overhead()

    def lowered(self, graph: Graph) -> LoweredFile:
        """`graph`, whose batch is 1, as a float .tflite. Raises as the lowering."""
        digest = _digest(graph)
        if digest not in self._lowered:
            path = self.folder / f"to-lower-{digest}.onnx"  # not sent as bytes, which this process would keep meanwhile
            path.write_bytes(graph.to_bytes())
            return_memory()  # the child needs several times the memory of the weights
            try:
                made = self.child.call("lower", model=str(path))
            finally:
                path.unlink()
            self._store_lowered(graph, made.data, made.input_permutes, made.output_permutes)
        return self._lowered[digest]

    def _store_lowered(
        self, graph: Graph, data: bytes, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]
    ) -> None:
        digest = _digest(graph)
        path = self.folder / f"float32-{digest}.tflite"
        path.write_bytes(data)
        self._lowered[digest] = LoweredFile(path, inputs, outputs)


def _exact_layers(recipe: Recipe) -> tuple[str, ...]:
    """Layers whose weights bias correction takes as they are; without correction, the layers that are rounded."""
    return (*recipe.float_layers, *recipe.int4_layers) if recipe.correct_bias else recipe.int4_layers


def _digest(graph: Graph) -> str:
    return hashlib.sha256(graph.to_bytes()).hexdigest()[:16]
