"""What a backend is given and what it gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from converters.backends.layers import Layer
from converters.calibration.calibrate import Calibration
from converters.cost.overhead import Overhead
from converters.graph.graph import Graph
from edgekit.bundle.bindings import Binding
from edgekit.bundle.recipe import Recipe
from edgekit.tensors import Array


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


class Furnishing(msgspec.Struct, frozen=True):
    """What one candidate needs beyond the graphs and samples of its workbench, on its way to another process.

    Attributes:
        prepared: The graph with the recipe's weights, as `packed`; None where that is the workbench's own.
        lowered: Its float .tflite (N,) uint8; None where the backend needs none.
        permutes: The transpositions of its inputs and outputs.
        calibration: What ranges are read from, where that is not the calibration that all share.
    """

    prepared: Array | None
    lowered: Array | None
    permutes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]]
    calibration: Calibration | None


class DirectFile(msgspec.Struct, frozen=True):
    """A float .tflite that the source's own converter made, and what tells it from the lowered one.

    Attributes:
        file: It, with nothing transposed.
        sha256: Of its bytes.
        overhead: What it costs beyond the lowered file's arithmetic.
    """

    file: LoweredFile
    sha256: str
    overhead: Overhead


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

    @property
    def graph(self) -> Graph:
        """The workbench's graph that artifacts are made of: the fixed one or the free one."""
        ...

    @property
    def lowers(self) -> bool:
        """True where artifacts are made of a float .tflite, which takes TensorFlow's process."""
        ...

    def layers(self, *, pruned: bool = False) -> tuple[Layer, ...]:
        """What a recipe may name in `float_layers` and, where they are `four_bit`, in `int4_layers`.

        Their names are the same in a pruned model; their weights are fewer.
        """
        ...

    def build(self, recipe: Recipe) -> Artifact:
        """Make the artifact that `recipe` asks for.

        Raises:
            ConversionError: it cannot be made; names the operator or the step.
        """
        ...
