"""What happens before and after a model: read from a TOML file, or told from the first layers of the model itself."""

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
from edgekit.preprocess.after import Suppress, TopK
from edgekit.tensors import Array, DType, TensorSpec

AUTO = "auto"
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024


class Steps(msgspec.Struct, frozen=True):
    """What a bundle will carry.

    Attributes:
        processing: The steps.
        files: Bytes of the files that they read, by their names in the bundle.
        source: Where they are from, for the report: the file's name, or ``detected``.
    """

    processing: Processing
    files: dict[str, bytes] = {}
    source: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, where a step knows them."""
        return next((step.labels for step in self.processing.after if isinstance(step, TopK | Suppress)), ())

    def bundle_files(self) -> dict[str, tuple[str, bytes]]:
        """(role, bytes) by name."""
        return {name: (ROLE_PROCESSING, data) for name, data in self.files.items()}

    def processor(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Processor:
        """What does it, for a model with these logical tensors.

        Raises:
            RecipeError: the steps do not fit the model; names every reason.
            ManifestError: a file that they read is damaged.
        """
        faults = processing_faults(self.processing, inputs, outputs)
        if faults:
            raise RecipeError(
                f"preprocessing {self.source} does not fit the model: {'; '.join(faults)}",
                advice="`edgekit inspect` shows the model's inputs and outputs.",
            )
        return Processor(self.processing, inputs, outputs, read=self.files.__getitem__, decode_image=decode_image)


def choose_steps(asked: str | None, graph: Graph, data: Sequence[Path | None]) -> Steps | None:
    """The steps before and after the model.

    Args:
        asked: A file of them; ``auto`` for those that the model's first layers tell; None for these too where `data`
            need them, and else for none: what was not evaluated is not shipped unasked.
        graph: The source model.
        data: Paths of data; a folder needs steps.

    Raises:
        RecipeError: as `read_steps`, or ``auto`` finds nothing.
    """
    if asked is None:
        return detect_steps(graph) if any(path is not None and path.is_dir() for path in data) else None
    if asked != AUTO:
        return read_steps(Path(asked))
    found = detect_steps(graph)
    if found is None:
        raise RecipeError(
            "the model does not say how its input is made: it begins with no layer that scales pixels",
            advice="Give the steps in a file with --preprocess FILE; docs/preprocess.md shows how.",
        )
    return found


def read_steps(path: Path) -> Steps:
    """Read a TOML file of steps. Labels may stand in a file, one a line; names of files are relative to this one.

    Raises:
        RecipeError: it is not there, no TOML, or has unknown steps or keys; so does a file that it names.
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
        return Steps(renamed, {place.name: place.read_bytes() for place in files.values()}, path.name)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"preprocessing {path} cannot be read: {error}", advice="docs/preprocess.md lists the steps and their keys."
        ) from error


def detect_steps(graph: Graph) -> Steps | None:
    """Steps for a model that takes images as they are decoded and scales them itself; None where it is no such model.

    That is one whose only input is (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, of 8-bit integers, or of float32
    that first of all is multiplied, divided, added to or subtracted from as Keras' Rescaling and Normalization do it.
    How the images were resized in training leaves no trace in a model: ``bilinear`` is what Keras does by default.
    """
    if len(graph.inputs) != 1:
        return None
    spec = graph.inputs[0]
    found = _frame(spec.shape)
    if found is None or not (spec.dtype is DType.UINT8 or (spec.dtype is DType.FLOAT32 and _scales_pixels(graph))):
        return None
    height, width, channels, first = found
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
    """Height, width, channels, and whether these come first; None where it is no image."""
    if len(shape) != 4:
        return None
    _, a, b, c = shape
    if c in (1, 3) and a and b and a > 3 and b > 3:
        return a, b, c, False
    if a in (1, 3) and b and c and b > 3 and c > 3:
        return b, c, a, True
    return None


def _scales_pixels(graph: Graph) -> bool:
    """Whether the first operators bring 0 to 255 to about one, by constants."""
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
    """Every step of a document, in whatever state it is."""
    if not isinstance(document, dict):
        return []
    before = [step for entry in document.get("before") or [] for step in (entry.get("steps") or [])]
    return [step for step in (*before, *(document.get("after") or [])) if isinstance(step, dict)]


def _renamed(document: Any, files: Mapping[str, Path]) -> Any:
    """The document with the names that files have in a bundle."""
    names = [path.name for path in files.values()]
    clash = next((name for name in names if names.count(name) > 1 or not FILE_PATH.fullmatch(name)), None)
    if clash is not None or {"model.tflite", "model.onnx", "golden.npz", "report.json", "report.html"} & set(names):
        raise RecipeError(f"files {', '.join(map(str, files.values()))} cannot all stand in one bundle by their names")
    for step in _tables(document):
        for key in ("vocabulary", "anchors"):
            if step.get(key) in files:
                step[key] = files[step[key]].name
    return document


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def rows_from_arrays(processor: Processor, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """`arrays` of a data file with what its steps make of those that are decoded but nothing more.

    Those are images (N, H, W, C) of uint8, sounds (N, samples) of float32 that are not yet what the model takes, and
    texts (N,).

    Raises:
        DataError: a step cannot be done; names the row.
    """
    specs = {spec.name: spec for spec in processor.inputs}
    found = dict(arrays)
    for raw in processor.raw:
        key = next((name for name in (raw.name, raw.input, "x") if name in found), None)
        if key is None or (key == "x" and len(processor.raw) > 1):
            continue
        value = found[key]
        made: dict[str, Array] | None = None
        if raw.kind == "text" and value.dtype.kind in "US" and value.ndim == 1:
            texts = [item.encode() if isinstance(item, str) else item for item in value.tolist()]
            made = processor.many(raw.name, texts, start=0)
        elif (raw.kind == "image" and value.dtype == np.uint8 and value.ndim == 4) or (
            raw.kind == "sound" and value.dtype == np.float32 and value.ndim == 2 and specs[raw.input].faults(value)
        ):
            made = processor.many(raw.name, list(value), start=1)
        if made is not None:
            del found[key]
            found.update(made)
    return found
