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
from converters.frontends.interface.source_rows import run_samples
from converters.frontends.onnx import canonical, load_onnx, onnx_answers, onnx_precision, steps_after_cut
from converters.frontends.program_check import write_checked
from converters.frontends.source_file import SourceFile
from converters.frontends.tflite import read_tflite, tflite_answers, tflite_call
from converters.frontends.tflite_direct import direct_tflite
from converters.graph.graph import Graph
from converters.graph.stated import NOTHING, Stated
from converters.lowering import Lowered
from converters.machine import scratch_folder
from edgekit.errors import SettingsError
from edgekit.preprocess.after import AfterStep
from edgekit.tensors import Array

# From the names of inputs and outputs, in the order wanted in the file, to the source as a float .tflite.
Direct = Callable[[Sequence[str], Sequence[str]], Lowered]

Answers = Callable[[Mapping[str, Array]], dict[str, Array]]  # of a source, to inputs by name


class Source(msgspec.Struct, frozen=True):
    """A loaded model file with its canonical graph.

    Attributes:
        path: Path of the file or folder.
        format: ``keras``, ``h5``, ``savedmodel``, ``onnx``, ``tflite`` or ``pt2``.
        sha256: Digest of the file; for a folder, of all its files in order of their names.
        graph: The canonical graph before any pass.
        answers: Runs the source in its own framework: inputs (N, ...) to outputs (N, ...).
        direct: Converts the source to LiteRT without the graph, or raises ConversionError; None if not available.
        precision: The coarsest float that the source computes in: its answers have the noise of this type.
        after: Steps after the model that take the place of what a cut removed.
    """

    path: Path
    format: str
    sha256: str
    graph: Graph
    answers: Answers
    direct: Direct | None = None
    precision: str = "float32"
    after: tuple[AfterStep, ...] = ()


def load_model(path: Path, process: TensorFlowProcess, stated: Stated = NOTHING, *, signature: str = "") -> Source:
    """Load a model of any format that edgekit reads.

    Args:
        path: The file or folder.
        process: Runs TensorFlow and PyTorch.
        stated: What the user stated of the inputs: sizes of free axes, fixed values, and the shapes of the data.
        signature: The signature of a SavedModel; empty for the default.

    Raises:
        SettingsError: There is no such signature, or the format has none; or `stated` does not fit the model.
        NotFoundError, ModelFormatError, UnsupportedOpError: From `sniff` and the frontends.
        MissingExtraError: The format needs a framework that is not installed.
        ConversionError: TensorFlow or PyTorch failed.
    """
    path = path.resolve()
    kind = formats.sniff(path)
    if signature and kind != formats.SAVED_MODEL:
        raise SettingsError(f"{path} is no SavedModel, so it has no signatures", advice="Leave out --signature.")
    digest = _digest(path)
    if kind == formats.ONNX:
        graph = load_onnx(path, stated)
        run = functools.partial(onnx_answers, path, graph=graph, cut=stated.cut)
        after = steps_after_cut(path, stated.cut)
        return Source(path, kind, digest, graph, run, precision=onnx_precision(path), after=after)
    if stated.cut:
        raise SettingsError(
            f"--cut cuts ONNX models, and {path} is a model of the format {kind}",
            advice="Build the model without its last operators, or export it to ONNX and cut that.",
        )
    if kind == formats.PT2:
        return _program(path, digest, process, stated)
    if kind == formats.TFLITE:
        graph = canonical(read_tflite(path), str(path), stated)
        answers = _answers(graph, functools.partial(tflite_answers, path), functools.partial(tflite_call, path))
        return Source(path, kind, digest, graph, answers, _direct(graph, functools.partial(direct_tflite, path)))
    file = SourceFile(str(path), kind, signature)
    data = process.call("export_source", source=file)
    graph = canonical(onnx.load_model_from_string(data), str(path), stated)

    def direct(inputs: Sequence[str], outputs: Sequence[str]) -> Lowered:
        sizes = {spec.name: [1, *spec.shape[1:]] for spec in graph.inputs}
        shapes = {name: sizes[name] for name in inputs}
        lowered: Lowered = process.call("direct", source=file, shapes=shapes, outputs=list(outputs))
        return lowered

    def answers_of(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs: dict[str, Array] = process.call("answers", source=file, inputs=dict(inputs))
        return outputs

    return Source(path, kind, digest, graph, _answers(graph, answers_of), _direct(graph, direct))


def _program(path: Path, digest: str, process: TensorFlowProcess, stated: Stated) -> Source:
    """Load a torch.export program. PyTorch sees only the checked copy, which is deleted after loading."""
    with scratch_folder(prefix="edgekit-program-") as folder:
        checked = Path(folder) / "checked.pt2"
        write_checked(path, checked)
        data = process.call("export_program", path=str(checked))
    graph = canonical(onnx.load_model_from_string(data), str(path), stated)

    def answers(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs: dict[str, Array] = process.call("program_answers", path=str(checked), inputs=dict(inputs))
        return outputs

    return Source(path, formats.PT2, digest, graph, _answers(graph, answers))


def _answers(graph: Graph, whole: Answers, call: Answers | None = None) -> Answers:
    """Runs the source on samples: with `whole`, or where its interface is its own, with single calls."""
    if graph.interface.plain:
        return whole
    return lambda inputs: run_samples(graph, inputs, call or whole)


def _direct(graph: Graph, direct: Direct) -> Direct | None:
    """The direct route, where the source's own interface is the graph's."""
    return direct if graph.interface.plain else None


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
