"""What a backend is given and what it gives back."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from converters.backends.layers import Layer, layers_of, require_layers
from converters.calibration import Calibration, calibrate, tensor_values
from converters.child import TensorFlowChild
from converters.graph import Graph
from converters.passes.contract import run_pass
from converters.passes.round_weights import RoundWeights
from converters.samples import Samples
from edgekit.errors import CalibrationError
from edgekit.manifest import Binding
from edgekit.recipe import Recipe
from edgekit.tensors import Array

PROBE_ROWS = 4  # enough to tell tensors apart by their values


class Artifact(msgspec.Struct, frozen=True):
    """One candidate's model file.

    Attributes:
        file: ``model.tflite`` or ``model.onnx``.
        data: Its bytes.
        runtime: ``litert`` or ``onnxruntime``.
        inputs, outputs: How it holds the logical tensors.
        runtime_version: The oldest version of the runtime that can run it; empty where any can.
    """

    file: str
    data: bytes
    runtime: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    runtime_version: str = ""


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
        self._free: Calibration | None = None
        self._prepared: dict[tuple[frozenset[str], str, bool], Graph] = {}
        self._lowered: dict[str, LoweredFile] = {}

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

    def ranges(self, recipe: Recipe, graph: Graph) -> dict[str, tuple[float, float]]:
        """Activation ranges by the rule that `recipe` names, for `graph`, the fixed one or the free one."""
        if graph is self.fixed:
            return self.calibration.ranges(recipe.ranges)
        if self._free is None:
            self._free = calibrate(graph, self.samples)
        return self._free.ranges(recipe.ranges)

    def probes(self, graph: Graph) -> dict[str, Array]:
        """What each tensor of `graph`, whose batch is 1, takes on the first rows of the calibration split (R, ...)."""
        parts = list(tensor_values(graph, self.samples.take(slice(0, PROBE_ROWS))))
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def prepared(self, recipe: Recipe, graph: Graph) -> Graph:
        """`graph`, the fixed one or the free one, with the float weights that `recipe` wants: rounded where it says so.

        Raises:
            CalibrationError: it needs samples and there are none.
            ConversionError: it names a layer that is not there or that cannot have 4 bits.
        """
        require_layers(recipe, layers_of(graph))
        if not recipe.int4_layers:
            return graph
        key = (frozenset(recipe.int4_layers), recipe.rounding, graph is self.fixed)
        if key not in self._prepared:
            samples = self.samples if recipe.rounding == "gptq" else None
            self._prepared[key] = run_pass(RoundWeights(recipe.int4_layers, samples), graph).graph
        return self._prepared[key]

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
