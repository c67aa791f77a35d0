"""A float .tflite as a source: read as ONNX, or where an operator cannot be read, kept as it is for LiteRT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from converters.frontends.files import sniff as formats
from converters.frontends.onnx import canonical
from converters.frontends.opaque import opaque_graph
from converters.frontends.source import Source, answers_of, direct_of
from converters.frontends.tflite.direct import direct_tflite
from converters.frontends.tflite.file import settled_tflite
from converters.frontends.tflite.read import names_of, read_tflite
from converters.graph.graph import Graph
from converters.graph.stated import Stated
from converters.lowering import Lowered
from converters.machine import scratch_folder
from converters.trials import SourceSession
from edgekit.errors import UnsupportedOpError
from edgekit.tensors import Array


def load_tflite(path: Path, digest: str, stated: Stated) -> Source:
    """Load a float .tflite.

    Raises:
        ModelFormatError: As `settled_tflite` and `canonical`.
        UnsupportedOpError: It has a custom operator.
    """
    data, notes = settled_tflite(path, stated)
    with _written(data) as file:
        inputs, outputs = names_of(file, path)
    graph = _graph(path, data, inputs, outputs, stated).with_notes(notes)

    def direct(inputs: Sequence[str], outputs: Sequence[str]) -> Lowered:
        return direct_tflite(data, inputs, outputs)

    def answers(samples: Mapping[str, Array]) -> dict[str, Array]:
        """Run the file on samples (N, ...), one row at a time."""
        with _written(data) as file, SourceSession(file) as runtime:
            rows = range(len(next(iter(samples.values()))))
            parts = [runtime.run({name: value[row : row + 1] for name, value in samples.items()}) for row in rows]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def call(tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the file once, on inputs in its own layout."""
        with _written(data) as file, SourceSession(file) as runtime:
            return runtime.run(tensors)

    return Source(path, formats.TFLITE, digest, graph, answers_of(graph, answers, call), direct_of(graph, direct))


def _graph(path: Path, data: bytes, inputs: list[str], outputs: list[str], stated: Stated) -> Graph:
    try:
        return canonical(read_tflite(data, path, (inputs, outputs)), str(path), stated)
    except UnsupportedOpError as error:
        lowered = direct_tflite(data, inputs, outputs)
        return opaque_graph(lowered.data, inputs, outputs, error, str(path), stated)


@contextmanager
def _written(data: bytes) -> Iterator[Path]:
    """The file on disk, since LiteRT maps files."""
    with scratch_folder(prefix="edgekit-source-") as folder:
        file = Path(folder) / "source.tflite"
        file.write_bytes(data)
        yield file
