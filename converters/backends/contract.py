"""What a backend is given and what it gives back."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Protocol

import msgspec

from converters.backends.layers import Layer
from converters.calibration import Calibration, calibrate
from converters.child import TensorFlowChild
from converters.graph import Graph
from converters.samples import Samples
from edgekit.errors import CalibrationError
from edgekit.manifest import Binding
from edgekit.recipe import Recipe


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


class Workbench:
    """What the backends of one conversion share; what takes long is done once, when first asked for.

    Args:
        graph: The canonical float graph.
        fixed: The same with a batch of 1, simplified for that.
        samples: The calibration split; None without data.
        child: TensorFlow's process.
        folder: Scratch space.
    """

    def __init__(
        self, graph: Graph, fixed: Graph, samples: Samples | None, child: TensorFlowChild, folder: Path
    ) -> None:
        self.graph = graph
        self.fixed = fixed
        self.child = child
        self.folder = folder
        self._samples = samples

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
        return calibrate(self.fixed, self.samples)

    @cached_property
    def float_tflite(self) -> Path:
        """The graph as a float .tflite; `permutes` are known from then on."""
        lowered = self.child.call("lower", model=self.fixed.to_bytes())
        self.permutes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = (
            lowered.input_permutes,
            lowered.output_permutes,
        )
        path = self.folder / "float32.tflite"
        path.write_bytes(lowered.data)
        return path


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
