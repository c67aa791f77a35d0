"""Load a model of any supported format."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import onnx

from converters.framework_process import TensorFlowProcess
from converters.frontends import sniff as formats
from converters.frontends.onnx import canonical, load_onnx, onnx_answers
from converters.frontends.program_check import write_checked
from converters.frontends.tflite import read_tflite, tflite_answers
from converters.frontends.tflite_direct import direct_tflite
from converters.graph.graph import Graph
from converters.lowering import Lowered
from converters.machine import scratch_folder
from edgekit.tensors import Array

EXPORTS = {formats.KERAS: "export_keras", formats.H5: "export_keras", formats.SAVED_MODEL: "export_saved_model"}

# From the names of inputs and outputs, in the order wanted in the file, to the source as a float .tflite.
Direct = Callable[[Sequence[str], Sequence[str]], Lowered]


class Source(msgspec.Struct, frozen=True):
    """A loaded model file with its canonical graph.

    Attributes:
        path: Path of the file or folder.
        format: ``keras``, ``h5``, ``savedmodel``, ``onnx``, ``tflite`` or ``pt2``.
        sha256: Digest of the file; for a folder, of all its files in order of their names.
        graph: The canonical graph before any pass.
        answers: Runs the source in its own framework: inputs (N, ...) to outputs (N, ...).
        direct: Converts the source to LiteRT without the graph, or raises ConversionError; None if not available.
    """

    path: Path
    format: str
    sha256: str
    graph: Graph
    answers: Callable[[Mapping[str, Array]], dict[str, Array]]
    direct: Direct | None = None


def load_model(path: Path, process: TensorFlowProcess) -> Source:
    """Load a model of any format that edgekit reads.

    Raises:
        NotFoundError, ModelFormatError, UnsupportedOpError: From `sniff` and the frontends.
        MissingExtraError: The format needs a framework that is not installed.
        ConversionError: TensorFlow or PyTorch failed.
    """
    path = path.resolve()
    kind = formats.sniff(path)
    digest = _digest(path)
    if kind == formats.ONNX:
        return Source(path, kind, digest, load_onnx(path), functools.partial(onnx_answers, path))
    if kind == formats.PT2:
        return _program(path, digest, process)
    if kind == formats.TFLITE:
        graph = canonical(read_tflite(path), str(path))
        answers = functools.partial(tflite_answers, path)
        return Source(path, kind, digest, graph, answers, functools.partial(direct_tflite, path))
    options = {"legacy": True} if kind == formats.H5 else {}
    data = process.call(EXPORTS[kind], path=str(path), **options)
    graph = canonical(onnx.load_model_from_string(data), str(path))
    return Source(
        path,
        kind,
        digest,
        graph,
        lambda inputs: process.call("answers", path=str(path), inputs=dict(inputs)),
        lambda inputs, outputs: process.call("direct", path=str(path), inputs=list(inputs), outputs=list(outputs)),
    )


def _program(path: Path, digest: str, process: TensorFlowProcess) -> Source:
    """Load a torch.export program. PyTorch sees only the checked copy, which is deleted after loading."""
    with scratch_folder(prefix="edgekit-program-") as folder:
        checked = Path(folder) / "checked.pt2"
        write_checked(path, checked)
        data = process.call("export_program", path=str(checked))
    graph = canonical(onnx.load_model_from_string(data), str(path))

    def answers(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs: dict[str, Array] = process.call("program_answers", path=str(checked), inputs=dict(inputs))
        return outputs

    return Source(path, formats.PT2, digest, graph, answers)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("*")), key=lambda file: file.parts)
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1024 * 1024):
                digest.update(block)
    return digest.hexdigest()
