"""What a backend is given and what it gives back."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from converters import parity
from converters.backends.layers import Layer, layers_of, require_layers
from converters.calibration import Calibration, calibrate, tensor_values
from converters.child import TensorFlowChild
from converters.graph import Graph
from converters.passes.contract import run_pass
from converters.passes.correct_bias import CorrectBias
from converters.passes.equalize import Equalize
from converters.passes.round_weights import RoundWeights
from converters.passes.split_heads import Head, SplitHeads, join
from converters.samples import Samples, random_samples
from edgekit.bindings import Binding
from edgekit.errors import CalibrationError
from edgekit.recipe import STATIC, Recipe
from edgekit.tensors import Array

KEPT_COARSER = 3  # 256 bins: what ranges need, in an eighth of the bytes
MOST_PREPARED = 8
PARITY_ROWS = 16
PROBE_ROWS = 4  # enough to tell tensors apart by their values


class Artifact(msgspec.Struct, frozen=True):
    """One candidate's model file.

    Attributes:
        file: ``model.tflite`` or ``model.onnx``.
        data: Its bytes.
        runtime: ``litert`` or ``onnxruntime``.
        inputs, outputs: How it holds the logical tensors.
        runtime_version: The oldest version of the runtime that can run it; empty where any can.
        compiled: The same compiled by an accelerator's own compiler; empty where there is none, or none is installed.
        notes: What a reader of the report should know of it.
        calibration: What its activation ranges were read from, as `Calibration.to_bytes`; empty where it has none.
    """

    file: str
    data: bytes
    runtime: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    runtime_version: str = ""
    compiled: bytes = b""
    notes: tuple[str, ...] = ()
    calibration: bytes = b""


class LoweredFile(msgspec.Struct, frozen=True):
    """A float .tflite, and the transposition of each input and output to it; an empty one changes nothing."""

    path: Path
    input_permutes: list[tuple[int, ...]]
    output_permutes: list[tuple[int, ...]]


class Workbench:
    """What the backends of one conversion share; what takes long is done once, when first asked for.

    Args:
        graph: The canonical float graph.
        fixed: The same with a batch of 1, simplified for that.
        samples: The calibration split; None without data.
        child: TensorFlow's process.
        folder: Scratch space.
        calibration: What was measured before on the same graph and samples; None measures when it is first asked for.
    """

    def __init__(
        self,
        graph: Graph,
        fixed: Graph,
        samples: Samples | None,
        child: TensorFlowChild,
        folder: Path,
        calibration: Calibration | None = None,
    ) -> None:
        self.graph = graph
        self.fixed = fixed
        self.child = child
        self.folder = folder
        self._samples = samples
        self._calibration = calibration
        self._calibrations: dict[tuple[bool, bool], Calibration] = {}
        self._prepared: dict[tuple[Any, ...], Graph] = {}
        self._lowered: dict[str, LoweredFile] = {}
        self._split: set[tuple[Head, ...]] = set()

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
    def calibration(self) -> Calibration:
        """What each tensor of the fixed graph takes on the calibration split. Raises as `calibrate`."""
        return self._calibration or calibrate(self.fixed, self.samples)

    def calibration_of(self, recipe: Recipe, graph: Graph) -> Calibration:
        """The calibration that ranges for `recipe` are read from; `graph` is the fixed one or the free one.

        Rounding and corrected biases hardly move ranges, equalization does: it is measured anew, once.
        """
        if graph is self.fixed and not recipe.equalize:
            return self.calibration
        key = (recipe.equalize, graph is self.fixed)
        if key not in self._calibrations:
            evened = self.prepared(Recipe(STATIC, equalize=True), graph) if recipe.equalize else graph
            self._calibrations[key] = calibrate(evened, self.samples)
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

        They are evened out, rounded to 4 bits and their biases corrected, in this order, where it says so.

        Raises:
            CalibrationError: it needs samples and there are none.
            ConversionError: it names a layer that is not there or that cannot have 4 bits.
            ParityError: evening out changed the answers.
        """
        require_layers(recipe, layers_of(graph))
        exact = (*recipe.float_layers, *recipe.int4_layers) if recipe.correct_bias else recipe.int4_layers
        key = (
            recipe.equalize,
            frozenset(recipe.int4_layers),
            recipe.rounding if recipe.int4_layers else "",
            frozenset(exact),
            recipe.correct_bias and ("per-channel" if recipe.per_channel else "per-tensor"),
            graph is self.fixed,
        )
        if key not in self._prepared:
            found = self._evened(graph) if recipe.equalize else graph
            samples = self.samples if recipe.rounding == "gptq" and recipe.int4_layers else None
            found = run_pass(RoundWeights(recipe.int4_layers, samples), found).graph
            if recipe.correct_bias:
                step = CorrectBias(self.samples, exact=exact, per_channel=recipe.per_channel)
                found = run_pass(step, found).graph
            self._prepared[key] = found
            while len(self._prepared) > MOST_PREPARED:  # each holds all weights
                self._prepared.pop(next(iter(self._prepared)))
        return self._prepared[key]

    def _evened(self, graph: Graph) -> Graph:
        found = run_pass(Equalize(self._samples), graph).graph
        self._require_same(graph, found, "equalize")
        return found

    def split(self, recipe: Recipe, graph: Graph) -> tuple[Graph, tuple[Head, ...]]:
        """`graph`, prepared and with a batch of 1, with its joined outputs taken apart for static int8, and which.

        Raises:
            CalibrationError: it needs samples and there are none.
            ParityError: taking apart changed the answers.
        """
        if recipe.precision != STATIC:
            return graph, ()
        step = SplitHeads(self.calibration_of(recipe, self.fixed).ranges())
        heads = step.heads(graph)
        found = run_pass(step, graph).graph
        if heads and heads not in self._split:  # it touches no weights: one check does for every recipe
            self._require_same(graph, found, step.name, heads)
            self._split.add(heads)
        return found, heads

    def prelower(self, recipe: Recipe) -> None:
        """Do for `recipe` what only TensorFlow's process can, so that copies of this in other processes need none.

        Raises:
            As `prepared`, `split` and `lowered`.
        """
        self.lowered(self.split(recipe, self.prepared(recipe, self.fixed))[0])

    def __getstate__(self) -> dict[str, Any]:
        """Everything but TensorFlow's process: a copy starts its own where it must lower after all."""
        return {**self.__dict__, "child": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, child=TensorFlowChild())

    def _require_same(self, before: Graph, after: Graph, name: str, heads: tuple[Head, ...] = ()) -> None:
        """Hold a step that must not change answers to that."""
        rows = random_samples(before.inputs, PARITY_ROWS, 1) if self._samples is None else self._samples
        inputs = rows.take(slice(0, PARITY_ROWS)).inputs
        expected = before.run(inputs)
        answers = join(heads, after.run(inputs))
        found = parity.compare(expected, answers, runtime=name, where="canonical graph", decision="")
        parity.require(found, parity.tolerance(expected, parity.FLOAT32_RELATIVE))

    def lowered(self, graph: Graph) -> LoweredFile:
        """`graph`, one with a batch of 1, as a float .tflite. Raises as the lowering."""
        digest = hashlib.sha256(graph.to_bytes()).hexdigest()[:16]
        if digest not in self._lowered:
            found = self.child.call("lower", model=graph.to_bytes())
            path = self.folder / f"float32-{digest}.tflite"
            path.write_bytes(found.data)
            self._lowered[digest] = LoweredFile(path, found.input_permutes, found.output_permutes)
        return self._lowered[digest]


class Backend(Protocol):
    """Makes artifacts of one kind."""

    @property
    def name(self) -> str:
        """As errors and reports call it."""
        ...

    @property
    def precisions(self) -> tuple[str, ...]:
        """What `build` can make, in the order in which candidates are tried."""
        ...

    def layers(self) -> tuple[Layer, ...]:
        """What a recipe may name in `float_layers` and, where they are `four_bit`, in `int4_layers`."""
        ...

    def build(self, recipe: Recipe) -> Artifact:
        """Make the artifact that `recipe` asks for.

        Raises:
            ConversionError: it cannot be made; names the operator or the step.
        """
        ...
