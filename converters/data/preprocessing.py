"""Steps before and after a model: read from a TOML file, or detected from the first layers of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters.graph.graph import Graph, attributes
from edgekit.bundle.manifest import FILE_PATH, ROLE_PROCESSING
from edgekit.decoding import decode_image
from edgekit.errors import RecipeError
from edgekit.preprocess import Processing, Processor, processing_faults
from edgekit.preprocess.after import AfterStep, Suppress, TopK
from edgekit.tensors import Array, DType, TensorSpec

DETECT, CUT = "auto", "cut"
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024


class Steps(msgspec.Struct, frozen=True):
    """The steps before and after a model, with the files that a bundle carries for them.

    Attributes:
        processing: The steps.
        files: Bytes of the files that the steps read, by name in the bundle.
        source: Name of the file of steps, ``detected``, or ``cut`` for those that take the place of a model's end.
    """

    processing: Processing
    files: dict[str, bytes] = {}
    source: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, where a step has them."""
        return next((step.labels for step in self.processing.after if isinstance(step, TopK | Suppress)), ())

    def bundle_files(self) -> dict[str, tuple[str, bytes]]:
        """The files for the bundle: (role, bytes) by name."""
        return {name: (ROLE_PROCESSING, data) for name, data in self.files.items()}

    def processor(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Processor:
        """The processor of the steps for a model with these logical tensors.

        Raises:
            RecipeError: the steps do not fit the model; the message has every reason.
            ManifestError: a file of the steps is damaged.
        """
        faults = processing_faults(self.processing, inputs, outputs)
        if faults:
            raise RecipeError(
                f"preprocessing {self.source} does not fit the model: {'; '.join(faults)}",
                advice="`edgekit inspect` shows the model's inputs and outputs.",
            )
        return Processor(self.processing, inputs, outputs, read=self.files.__getitem__, decode_image=decode_image)


def choose_steps(choice: str | None, graph: Graph, data: Sequence[Path | None]) -> Steps | None:
    """The steps before and after the model.

    Args:
        choice: Path of a file of steps; ``auto`` detects steps from the model's first layers. None detects steps where
            `data` has a folder, and otherwise uses none: steps that were not evaluated are not shipped by default.
        graph: The source model.
        data: Paths of the data; a folder needs steps.

    Raises:
        RecipeError: as `read_steps`, or ``auto`` detects no steps.
    """
    if choice is None:
        return detect_steps(graph) if any(path is not None and path.is_dir() for path in data) else None
    if choice != DETECT:
        return read_steps(Path(choice))
    steps = detect_steps(graph)
    if steps is None:
        raise RecipeError(
            "no preprocessing steps were detected: the model has no first layer that scales pixels",
            advice="Give the steps with --preprocess FILE; docs/preprocess.md shows how.",
        )
    return steps


def with_after(steps: Steps | None, after: Sequence[AfterStep]) -> Steps | None:
    """`steps` with `after` as the steps after the model, unless they have such steps themselves."""
    if not after or (steps is not None and steps.processing.after):
        return steps
    if steps is None:
        return Steps(Processing(after=tuple(after)), source=CUT)
    return msgspec.structs.replace(steps, processing=msgspec.structs.replace(steps.processing, after=tuple(after)))


def read_steps(path: Path) -> Steps:
    """Read a TOML file of steps. Labels may be in another file, one per line. File names are relative to the TOML file.

    Raises:
        RecipeError: the file or a file that it names cannot be read, is not TOML, or has unknown steps or keys.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_DOCUMENT_BYTES:
            raise RecipeError(f"preprocessing {path} has {len(data)} bytes, the limit is {MAX_DOCUMENT_BYTES}")
        document = msgspec.toml.decode(data)
        for step in _tables(document):
            if isinstance(step.get("labels"), str):
                step["labels"] = _lines(path.parent / step["labels"])
        processing = msgspec.convert(document, Processing)
        files = {name: path.parent / name for name in processing.files()}
        renamed = msgspec.convert(_renamed(document, files), Processing)
        return Steps(renamed, {file.name: file.read_bytes() for file in files.values()}, path.name)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"preprocessing {path} cannot be read: {error}", advice="docs/preprocess.md lists the steps and their keys."
        ) from error


def detect_steps(graph: Graph) -> Steps | None:
    """Detect the steps of a model that takes decoded images and scales them itself; None for other models.

    Such a model has one input (N, H, W, C) or (N, C, H, W) with 1 or 3 channels. The input has 8-bit integers, or
    float32 values that the first layers scale and shift by constants, as Keras' Rescaling and Normalization do. A model
    does not show how images were resized in training; ``bilinear`` is Keras' default.
    """
    if len(graph.inputs) != 1:
        return None
    spec = graph.inputs[0]
    frame = _frame(spec.shape)
    if frame is None or not (spec.dtype is DType.UINT8 or (spec.dtype is DType.FLOAT32 and _scales_pixels(graph))):
        return None
    height, width, channels, first = frame
    steps: list[dict[str, Any]] = [
        {"do": "decode-image", "colour": "grey" if channels == 1 else "rgb"},
        {"do": "resize", "height": height, "width": width, "method": "bilinear"},
    ]
    if spec.dtype is DType.UINT8:
        steps.append({"do": "cast", "dtype": "uint8"})
    if first:
        steps.append({"do": "layout", "to": "CHW"})
    return Steps(msgspec.convert({"before": [{"input": spec.name, "steps": steps}]}, Processing), source="detected")


def _frame(shape: Sequence[int | None]) -> tuple[int, int, int, bool] | None:
    """Height, width, channels, and whether channels come first; None where the shape is not an image."""
    if len(shape) != 4:
        return None
    _, a, b, c = shape
    if c in (1, 3) and a and b and a > 3 and b > 3:
        return a, b, c, False
    if a in (1, 3) and b and c and b > 3 and c > 3:
        return b, c, a, True
    return None


def _scales_pixels(graph: Graph) -> bool:
    """True where the first operators scale values of 0 to 255 to a range near 1, by constants."""
    tensor, scaled = graph.inputs[0].name, np.array([0.0, 255.0])
    for _ in range(8):
        readers = graph.consumers(tensor)
        if len(readers) != 1:
            break
        node = readers[0]
        constant = next((graph.constants[name] for name in node.input if name in graph.constants), None)
        if node.op_type in _ARITHMETIC and constant is not None and constant.size <= 4:
            value = float(np.mean(constant))
            scaled = _ARITHMETIC[node.op_type](scaled, value)
        elif node.op_type not in ("Transpose", "Cast", "Identity", "Reshape") or attributes(node).get("to") == 7:
            break
        tensor = node.output[0]
    reach = float(np.ptp(scaled))
    return 0.5 <= reach <= 20 and float(np.abs(scaled).max()) <= 20


_ARITHMETIC: dict[str, Callable[[Array, float], Array]] = {
    "Mul": lambda x, c: x * c,
    "Div": lambda x, c: x / c if c else x,
    "Add": lambda x, c: x + c,
    "Sub": lambda x, c: x - c,
}


def _tables(document: Any) -> list[dict[str, Any]]:
    """Every step of a document that may still have faults."""
    if not isinstance(document, dict):
        return []
    before = [step for entry in document.get("before") or [] for step in (entry.get("steps") or [])]
    return [step for step in (*before, *(document.get("after") or [])) if isinstance(step, dict)]


def _renamed(document: Any, files: Mapping[str, Path]) -> Any:
    """The document with the file names of the bundle."""
    names = [path.name for path in files.values()]
    clash = next((name for name in names if names.count(name) > 1 or not FILE_PATH.fullmatch(name)), None)
    if clash is not None or {"model.tflite", "model.onnx", "golden.npz", "report.json", "report.html"} & set(names):
        raise RecipeError(
            f"files {', '.join(map(str, files.values()))} cannot be in one bundle",
            advice="Give the files different names; names of the bundle's own files cannot be used.",
        )
    for step in _tables(document):
        for key in ("vocabulary", "anchors"):
            if step.get(key) in files:
                step[key] = files[step[key]].name
    return document


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def rows_from_arrays(processor: Processor, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Run the steps on arrays of a data file that are decoded but not preprocessed; other arrays stay as they are.

    Such arrays are images (N, H, W, C) of uint8, sounds (N, samples) of floats that do not fit the model's input, and
    texts (N,).

    Raises:
        DataError: a step fails; the message names the row.
    """
    specs = {spec.name: spec for spec in processor.inputs}
    rows = dict(arrays)
    for raw in processor.raw:
        key = next((name for name in (raw.name, raw.input, "x") if name in rows), None)
        if key is None or (key == "x" and len(processor.raw) > 1):
            continue
        value = rows[key]
        made: dict[str, Array] | None = None
        if raw.kind == "text" and value.dtype.kind in "US" and value.ndim == 1:
            texts = [item.encode() if isinstance(item, str) else item for item in value.tolist()]
            made = processor.convert_rows(raw.name, texts, start=0)
        elif raw.kind == "image" and value.dtype == np.uint8 and value.ndim == 4:
            made = processor.convert_rows(raw.name, list(value), start=1)
        elif raw.kind == "sound" and value.dtype.kind == "f" and value.ndim == 2:
            sound = value.astype(np.float32)
            if specs[raw.input].faults(sound):
                made = processor.convert_rows(raw.name, list(sound), start=1)
        if made is not None:
            del rows[key]
            rows.update(made)
    return rows
