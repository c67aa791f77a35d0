"""SavedModels with functions that XLA compiles, as calls in their place. Only the TensorFlow process imports this.

Keras compiles grouped convolutions by XLA, because TensorFlow trains them on GPUs only. A SavedModel has them
as calls, which tf2onnx does not know; without the mark for XLA, TensorFlow puts the functions in their place.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from pathlib import Path

from tensorflow.core.protobuf import saved_model_pb2

from converters.machine import scratch_folder

GRAPH = "saved_model.pb"
COMPILED = "_XlaMustCompile"
_functions = operator.attrgetter("library.function")  # of a graph


@contextlib.contextmanager
def without_xla(path: str) -> Iterator[str]:
    """The folder of a copy of the SavedModel at `path` without XLA; the same folder where no function is compiled.

    The copy links to the weights, and is deleted at the end.
    """
    source = Path(path)
    graph = source / GRAPH
    data = graph.read_bytes() if graph.is_file() else b""  # a model as text is taken as it is
    if COMPILED.encode() not in data:
        yield path
        return
    with scratch_folder(prefix="edgekit-plain-") as folder:
        for entry in source.iterdir():
            if entry.name != GRAPH:
                (Path(folder) / entry.name).symlink_to(entry.resolve())
        (Path(folder) / GRAPH).write_bytes(_unmarked(data))
        yield folder


def _unmarked(data: bytes) -> bytes:
    model = saved_model_pb2.SavedModel.FromString(data)
    for part in model.meta_graphs:
        functions = _functions(part.graph_def)
        nodes = [*part.graph_def.node, *(node for one in functions for node in one.node_def)]
        for marked in (*functions, *nodes):
            marked.attr.pop(COMPILED, None)
    unmarked: bytes = model.SerializeToString()
    return unmarked
