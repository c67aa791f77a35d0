"""The backend protocol and the values that backends exchange with the rest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import msgspec

from converters.backends.layers import Layer
from converters.calibration.calibrate import Calibration
from converters.cost.overhead import Overhead
from converters.graph.graph import Graph
from edgekit.bundle.bindings import Binding
from edgekit.bundle.recipe import WHOLE, Recipe
from edgekit.tensors import Array


class Artifact(msgspec.Struct, frozen=True):
    """One candidate's model file.

    Attributes:
        file: ``model.tflite`` or ``model.onnx``.
        content: The bytes of the file; empty where they are in the file at `path`.
        runtime: ``litert`` or ``onnxruntime``.
        inputs, outputs: Bindings of the logical tensors to its own.
        runtime_version: Oldest version of the runtime that can run it; empty where every version can.
        compiled: The file compiled by the accelerator's compiler; empty without an accelerator or an installed
            compiler.
        notes: Sentences for the report.
        calibration: The calibration of its activation ranges, as `Calibration.to_bytes`; empty where it has no ranges.
        path: The file in a scratch folder, see `moved`.
    """

    file: str
    content: bytes
    runtime: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    runtime_version: str = ""
    compiled: bytes = b""
    notes: tuple[str, ...] = ()
    calibration: bytes = b""
    path: str = ""

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return Path(self.path).read_bytes() if self.path else self.content

    def moved(self, folder: Path) -> Artifact:
        """The artifact with its bytes in a file in `folder`: a search makes dozens, and reads few again."""
        if self.path:
            return self
        path = folder / f"{hashlib.sha256(self.content).hexdigest()}-{self.file}"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content)
        return msgspec.structs.replace(self, content=b"", path=str(path))


class LoweredFile(msgspec.Struct, frozen=True):
    """A float .tflite, and the transposition of each input and output; an empty transposition changes nothing."""

    path: Path
    input_permutes: list[tuple[int, ...]]
    output_permutes: list[tuple[int, ...]]


class PreparedInputs(msgspec.Struct, frozen=True):
    """Inputs that one candidate needs in another process, beyond the packed conversion context.

    Attributes:
        prepared: The graph with the recipe's weights, as `packed`; None where the context has it.
        lowered: The float .tflite (N,) uint8; None where the backend needs none.
        permutes: The transpositions of the file's inputs and outputs.
        calibration: Calibration of the prepared graph; None for the shared calibration.
        base: The graphs that the recipe starts from, as `ConversionContext.packed_base` gives them.
    """

    prepared: Array | None
    lowered: Array | None
    permutes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]]
    calibration: Calibration | None
    base: tuple[Array, ...] = ()


class DirectFile(msgspec.Struct, frozen=True):
    """A float .tflite that the source framework's own converter made.

    Attributes:
        file: The file, with nothing transposed.
        sha256: Digest of its bytes.
        overhead: Run-time cost beyond the arithmetic of the lowered file.
    """

    file: LoweredFile
    sha256: str
    overhead: Overhead


class Backend(Protocol):
    """Makes artifacts of one kind."""

    @property
    def name(self) -> str:
        """Name of the backend in errors and reports."""
        ...

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that `build` supports, in the order in which candidates are made."""
        ...

    @property
    def graph(self) -> Graph:
        """The context's graph that artifacts are made of: the fixed graph or the graph with a free batch."""
        ...

    @property
    def lowers(self) -> bool:
        """True where artifacts are made of a float .tflite, which needs TensorFlow's process."""
        ...

    def layers(self, base: Recipe = WHOLE) -> tuple[Layer, ...]:
        """Layers of the graph that recipes with this `base` start from.

        A recipe may name them in `float_layers` and, where they are `four_bit`, in `int4_layers`. The names are the
        same in a pruned model, which has fewer weights.
        """
        ...

    def build(self, recipe: Recipe) -> Artifact:
        """Make the artifact of `recipe`.

        Raises:
            ConversionError: the artifact cannot be made; the message names the operator or the step.
        """
        ...
