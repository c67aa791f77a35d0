"""One way in for every kind of model."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import onnx

from converters.framework_process import TensorFlowChild
from converters.frontends import sniff as formats
from converters.frontends.onnx import canonical, load_onnx, onnx_answers
from converters.frontends.program_check import write_checked
from converters.frontends.tflite import read_tflite, tflite_answers
from converters.frontends.tflite_direct import direct_tflite
from converters.graph.graph import Graph
from converters.lowering import Lowered
from edgekit.tensors import Array

EXPORTS = {formats.KERAS: "export_keras", formats.H5: "export_keras", formats.SAVED_MODEL: "export_saved_model"}

# Names of inputs and outputs in the order in which the file shall have them, to the source as a float .tflite.
Direct = Callable[[Sequence[str], Sequence[str]], Lowered]


class Source(msgspec.Struct, frozen=True):
    """A model as it came, with the graph that was made of it.

    Attributes:
        path: Where it was read.
        format: ``keras``, ``h5``, ``savedmodel``, ``onnx``, ``tflite`` or ``pt2``.
        sha256: Of the file; of all files in order of their names for a folder.
        graph: The canonical graph before any pass.
        answers: What the source itself answers to inputs (N, ...), by its own framework.
        direct: The way to LiteRT that leaves the graph out; raises ConversionError where it ends. None: there is none.
    """

    path: Path
    format: str
    sha256: str
    graph: Graph
    answers: Callable[[Mapping[str, Array]], dict[str, Array]]
    direct: Direct | None = None


def load_model(path: Path, child: TensorFlowChild) -> Source:
    """Load any model that edgekit reads.

    Raises:
        NotFoundError, ModelFormatError, UnsupportedOpError: as the frontends do.
        MissingExtraError: it needs a framework that is not installed.
        ConversionError: TensorFlow or PyTorch failed.
    """
    path = path.resolve()
    kind = formats.sniff(path)
    digest = _digest(path)
    if kind == formats.ONNX:
        return Source(path, kind, digest, load_onnx(path), functools.partial(onnx_answers, path))
    if kind == formats.PT2:
        return _program(path, digest, child)
    if kind == formats.TFLITE:
        graph = canonical(read_tflite(path), str(path))
        answers = functools.partial(tflite_answers, path)
        return Source(path, kind, digest, graph, answers, functools.partial(direct_tflite, path))
    options = {"legacy": True} if kind == formats.H5 else {}
    data = child.call(EXPORTS[kind], path=str(path), **options)
    graph = canonical(onnx.load_model_from_string(data), str(path))
    return Source(
        path,
        kind,
        digest,
        graph,
        lambda inputs: child.call("answers", path=str(path), inputs=dict(inputs)),
        lambda inputs, outputs: child.call("direct", path=str(path), inputs=list(inputs), outputs=list(outputs)),
    )


def _program(path: Path, digest: str, child: TensorFlowChild) -> Source:
    """A torch.export program: PyTorch sees only the checked copy, which is needed no longer than it is loaded."""
    with tempfile.TemporaryDirectory(prefix="edgekit-program-") as folder:
        checked = Path(folder) / "checked.pt2"
        write_checked(path, checked)
        data = child.call("export_program", path=str(checked))
    graph = canonical(onnx.load_model_from_string(data), str(path))

    def answers(inputs: Mapping[str, Array]) -> dict[str, Array]:
        found: dict[str, Array] = child.call("program_answers", path=str(checked), inputs=dict(inputs))
        return found

    return Source(path, formats.PT2, digest, graph, answers)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    for file in files:
        if file != path:
            found.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1024 * 1024):
                found.update(block)
    return found.hexdigest()
