"""A loaded source model: its canonical graph, and how the source itself is run and converted."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from converters.frontends.interface.source_rows import run_samples
from converters.graph.graph import CHUNK_BYTES, Graph, joined, whole
from converters.lowering import Lowered
from edgekit.preprocess.after import AfterStep
from edgekit.tensors import Array

# From the names of inputs and outputs, in the order wanted in the file, to the source as a float .tflite.
Direct = Callable[[Sequence[str], Sequence[str]], Lowered]

# A framework holds patches of convolutions and compiled code besides the tensors: several times their bytes.
SOURCE_BYTES = CHUNK_BYTES // 2

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

    def once_read(self, graph: Graph) -> Source:
        """The same source with its canonical `graph`, for what comes later: it cannot run the source any more.

        The graph before all passes, which `answers` may hold too, has all weights a second time.
        """
        return msgspec.structs.replace(self, graph=graph, answers=_not_any_more)


def _not_any_more(inputs: Mapping[str, Array]) -> dict[str, Array]:
    raise RuntimeError("the source model was compared with its graph already, and is not run again")


def answers_of(graph: Graph, run: Answers, call: Answers | None = None) -> Answers:
    """Runs the source on samples, in parts that bound memory; where its interface is its own, with single calls.

    Where the graph takes one row, so does the source: a branch is decided once for all rows of a call.
    """
    if graph.interface.plain:
        return run if graph.opaque is not None and graph.free_batch else functools.partial(_in_parts, graph, run)
    return lambda inputs: run_samples(graph, inputs, call or run)


def _in_parts(graph: Graph, run: Answers, inputs: Mapping[str, Array]) -> dict[str, Array]:
    parts = list(graph.chunks(inputs, SOURCE_BYTES))
    if len(parts) == 1:
        return run(inputs)
    return joined([whole(run(part), len(next(iter(part.values())))) for part in parts])


def direct_of(graph: Graph, direct: Direct) -> Direct | None:
    """The direct route, where the source's own interface is the graph's."""
    return direct if graph.interface.plain else None


def digest_of_files(path: Path) -> str:
    """Digest of a file, or of all files of a folder in order of their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("*")), key=lambda file: file.parts)
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1024 * 1024):
                digest.update(block)
    return digest.hexdigest()
