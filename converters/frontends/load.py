"""Load a model of any supported format."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import onnx

from converters.framework_process import TensorFlowProcess
from converters.frontends.files import sniff as formats
from converters.frontends.onnx import canonical, load_onnx, onnx_answers, onnx_precision, steps_after_cut
from converters.frontends.onnx.floats import precision_of
from converters.frontends.source import Source, answers_of, digest_of_files
from converters.frontends.tensorflow.source import load_tensorflow
from converters.frontends.tensorflow.source_file import SourceFile
from converters.frontends.tflite.source import load_tflite
from converters.frontends.torch.program_check import write_checked
from converters.graph.stated import NOTHING, Stated
from converters.machine import scratch_folder
from edgekit.errors import SettingsError
from edgekit.tensors import Array


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
    digest = digest_of_files(path)
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
        return load_tflite(path, digest, stated)
    return load_tensorflow(SourceFile(str(path), kind, signature), digest, process, stated)


def _program(path: Path, digest: str, process: TensorFlowProcess, stated: Stated) -> Source:
    """Load a torch.export program. PyTorch sees only a checked copy, which is deleted after loading."""
    key = f"{path} {digest}"

    def export() -> bytes:
        with scratch_folder(prefix="edgekit-program-") as folder:
            checked = Path(folder) / "checked.pt2"
            write_checked(path, checked)
            data: bytes = process.call("export_program", path=str(checked), key=key, source=str(path))
        return data

    def run(inputs: Mapping[str, Array], *, rows: bool) -> dict[str, Array]:
        if not process.call("program_is_loaded", key=key):  # its process ended
            export()
        outputs: dict[str, Array] = process.call("program_answers", key=key, inputs=dict(inputs), rows=rows)
        return outputs

    model = onnx.load_model_from_string(export())
    graph = canonical(model, str(path), stated)
    answers = answers_of(graph, functools.partial(run, rows=True), functools.partial(run, rows=False))
    return Source(path, formats.PT2, digest, graph, answers, precision=precision_of(model))
