"""Compares two models or bundles on the same samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from converters.candidates.candidate import HOST_PROVIDERS, run_rows
from converters.data.samples import Samples, data_arrays, load_samples
from converters.data.stateful import answers_to, with_states
from converters.framework_process import TensorFlowProcess
from converters.frontends import load_model
from converters.graph.interface import Interface, SourceInput, sample_spec
from converters.graph.stated import DataArray, Stated
from converters.graph.task import detect_task
from converters.quality.drop import Drop
from converters.quality.judging import Scores
from converters.quality.metrics import AGREEMENT, find_metric, fitted, score
from converters.quality.parity import Parity
from converters.quality.parity import compare as compare_answers
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.bundle.state import state_links
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
    interface: Interface
    samples: tuple[TensorSpec, ...]  # the inputs that it reads, with the samples first
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
        stated = _stated([first, second], files)
        a, b = (stack.enter_context(_opened(path, child, stated)) for path in (first, second))
        if _tensors(a) != _tensors(b):
            raise DataError(
                f"the interfaces differ: {first.name} has {_text(a)}; {second.name} has {_text(b)}",
                advice="Only models with the same inputs and outputs can be compared.",
            )
        return [_compared(a, b, _samples(file, a, b), metric, confidence, second.name) for file in files]


def _compared(a: _Model, b: _Model, samples: Samples, metric: str | None, confidence: float, name: str) -> Comparison:
    answers_a, answers_b = answers_to(a.run, samples), answers_to(b.run, samples)
    output = a.decision or next(iter(answers_a))
    seen = answers_a[output]
    used = fitted(find_metric(metric, samples.labels, decisions=bool(a.decision), shape=seen.shape[1:]), seen)
    labels = answers_a[output] if used.name == AGREEMENT or samples.labels is None else samples.labels
    scores_a, scores_b = (score(used, answers[output], labels) for answers in (answers_a, answers_b))
    return Comparison(
        used.name,
        used.value(scores_a),
        used.value(scores_b),
        Scores(scores_a, scores_b, labels, samples.stream).drop(used, confidence),
        compare_answers(answers_a, answers_b, runtime=name, where="this machine", decision=a.decision),
    )


def _samples(file: Path, a: _Model, b: _Model) -> Samples:
    """The samples of a file; where one of the models is a bundle with state, in streams with the states of `a`."""
    feeds = a.interface.state or b.interface.state
    samples = load_samples(file, a.samples, interface=msgspec.structs.replace(a.interface, state=feeds))
    return with_states(samples, a.run, a.samples, feeds)


@contextlib.contextmanager
def _opened(path: Path, child: TensorFlowProcess, stated: Stated) -> Iterator[_Model]:
    if not (path / MANIFEST_NAME).is_file():
        graph = load_model(path, child, stated).graph
        task = detect_task(graph, None).task
        yield _Model(graph.interface, graph.sample_inputs, graph.run, task.output)
        return
    manifest = parse_manifest((path / MANIFEST_NAME).read_bytes())
    runtime = open_runtime(manifest, path, providers=HOST_PROVIDERS)
    try:
        interface = bundle_interface(manifest)
        samples = tuple(sample_spec(one.spec) for one in interface.inputs if one.in_graph)
        yield _Model(interface, samples, lambda inputs: run_rows(runtime, inputs), manifest.task.output)
    finally:
        runtime.close()


def bundle_interface(manifest: Manifest) -> Interface:
    """The interface that a bundle offers."""
    inputs = tuple(
        SourceInput(one.spec, None if one.value is msgspec.UNSET else one.value, one.unread is True)
        for one in manifest.inputs
    )
    state = {link.spec.name: link.output for link in state_links(manifest.inputs)}
    return Interface(inputs, tuple(one.spec for one in manifest.outputs), state)


def _stated(models: list[Path], files: list[Path]) -> Stated:
    """Sizes and values of inputs for models with free axes: those of a bundle among `models`, and those of the data."""
    manifests = [(path / MANIFEST_NAME).read_bytes() for path in models if (path / MANIFEST_NAME).is_file()]
    known = data_arrays(files[0]) if files else {}
    return stated_like([parse_manifest(data) for data in manifests], known)


def stated_like(bundles: Iterable[Manifest], known: Mapping[str, DataArray] | None = None) -> Stated:
    """The sizes and values of inputs that models beside these bundles have, and those that are `known` otherwise."""
    found = dict(known or {})
    for manifest in bundles:
        for one in bundle_interface(manifest).inputs:
            shape = (1, *(size or 1 for size in sample_spec(one.spec).shape[1:]))
            found[one.spec.name] = DataArray(() if one.value is not None else shape, one.value)
    return Stated(data=found)


def _tensors(model: _Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return tuple(one.spec for one in model.interface.inputs), model.interface.outputs


def _text(model: _Model) -> str:
    inputs, outputs = _tensors(model)
    return ", ".join(f"{s.name} {s.dtype.value}{s.shape_text}" for s in (*inputs, *outputs))
