"""Compares two models or bundles on the same samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from converters.candidates.candidate import HOST_PROVIDERS, run_rows
from converters.data.samples import Samples, load_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends import load_model
from converters.graph.task import detect_task
from converters.quality.drop import Drop
from converters.quality.metrics import AGREEMENT, drop_of, find_metric, score
from converters.quality.parity import Parity
from converters.quality.parity import compare as compare_answers
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.errors import DataError
from edgekit.runtimes import open_runtime
from edgekit.tensors import Array, TensorSpec

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


class Comparison(msgspec.Struct, frozen=True):
    """A (the reference) against B: the metric of both, B's drop with its bounds, and the difference of the answers."""

    metric: str
    first: float
    second: float
    drop: Drop
    parity: Parity


class _Model(msgspec.Struct, frozen=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Run
    decision: str


def compare_models(
    first: Path, second: Path, files: list[Path], *, metric: str | None, confidence: float
) -> list[Comparison]:
    """Compare two models or bundles on each data file.

    Raises:
        DataError: their interfaces differ, or the data does not fit them.
        ModelFormatError, ManifestError: one of them cannot be read.
    """
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(TensorFlowProcess())
        a, b = (stack.enter_context(_opened(path, child)) for path in (first, second))
        if (a.inputs, a.outputs) != (b.inputs, b.outputs):
            raise DataError(
                f"the interfaces differ: {first.name} has {_text(a)}; {second.name} has {_text(b)}",
                advice="Only models with the same inputs and outputs can be compared.",
            )
        return [_compared(a, b, load_samples(file, a.inputs), metric, confidence, second.name) for file in files]


def _compared(a: _Model, b: _Model, samples: Samples, metric: str | None, confidence: float, name: str) -> Comparison:
    answers_a, answers_b = a.run(samples.inputs), b.run(samples.inputs)
    output = a.decision or a.outputs[0].name
    used = find_metric(metric, samples.labels, decisions=bool(a.decision))
    labels = answers_a[output] if used.name == AGREEMENT or samples.labels is None else samples.labels
    scores_a, scores_b = (score(used, answers[output], labels) for answers in (answers_a, answers_b))
    return Comparison(
        used.name,
        used.value(scores_a),
        used.value(scores_b),
        drop_of(used, scores_a, scores_b, labels, confidence),
        compare_answers(answers_a, answers_b, runtime=name, where="this machine", decision=a.decision),
    )


@contextlib.contextmanager
def _opened(path: Path, child: TensorFlowProcess) -> Iterator[_Model]:
    if not (path / MANIFEST_NAME).is_file():
        source = load_model(path, child)
        graph = source.graph
        task = detect_task(graph, None)
        yield _Model(graph.logical_inputs, graph.logical_outputs, graph.run, task.output)
        return
    manifest = parse_manifest((path / MANIFEST_NAME).read_bytes())
    runtime = open_runtime(manifest, path, providers=HOST_PROVIDERS)
    try:
        yield _Model(runtime.inputs, runtime.outputs, lambda inputs: run_rows(runtime, inputs), manifest.task.output)
    finally:
        runtime.close()


def _text(model: _Model) -> str:
    return ", ".join(f"{s.name} {s.dtype.value}{s.shape_text}" for s in (*model.inputs, *model.outputs))
