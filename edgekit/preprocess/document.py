"""Processing: the manifest's steps before and after the model, and the check that they fit the model."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

from collections.abc import Sequence

import msgspec

from edgekit.errors import DataError
from edgekit.preprocess.after import AfterStep, Specs, Suppress, TopK
from edgekit.preprocess.before import BeforeStep
from edgekit.preprocess.steps import BYTES, SampleType
from edgekit.preprocess.text_steps import WordPieces
from edgekit.tensors import TensorSpec

MAX_STEPS = 64


class Before(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps from a client's bytes to one input of the model.

    Attributes:
        input: Name of the model's input; empty if the model has only one.
        raw: Name of the bytes for clients; empty for the input's own name.
        steps: The steps in order; the first one decodes the bytes.
    """

    steps: tuple[BeforeStep, ...]
    input: str = ""
    raw: str = ""


class Processing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps before and after the model: only names and options of steps that edgekit implements, no code."""

    before: tuple[Before, ...] = ()
    after: tuple[AfterStep, ...] = ()

    def files(self) -> dict[str, str]:
        """Names of the bundle's files that the steps read, with their kind: ``vocabulary`` or ``anchors``."""
        kinds: dict[str, str] = {}
        for before in self.before:
            for step in before.steps:
                kinds.update(step.files())
        for last in self.after:
            kinds.update(last.files())
        return kinds


class Raw(msgspec.Struct, frozen=True):
    """An input that clients may send as bytes.

    Attributes:
        name: Name for clients.
        input: Name of the model's input.
        kind: ``image``, ``sound`` or ``text``.
    """

    name: str
    input: str
    kind: str


_KINDS = {"decode-image": "image", "decode-wav": "sound", "word-pieces": "text"}


def raw_inputs(processing: Processing, inputs: Sequence[TensorSpec]) -> tuple[Raw, ...]:
    """The inputs that clients may send as bytes; `processing` must have no faults."""
    raws = []
    for before in processing.before:
        name = before.input or inputs[0].name
        raws.append(Raw(before.raw or name, name, _KINDS[before.steps[0].name]))
    return tuple(raws)


def filled_inputs(processing: Processing, inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Names of the model's inputs that the steps fill from bytes; `processing` must have no faults."""
    return frozenset(
        name for before in processing.before for name in _filled_inputs(before.input or inputs[0].name, before, [])
    )


def processing_faults(processing: Processing, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[str]:
    """Every reason why `processing` does not fit a model with these logical tensors; empty if it fits."""
    count = len(processing.after) + sum(len(before.steps) for before in processing.before)
    if count > MAX_STEPS:
        return [f"processing has {count} steps, the limit is {MAX_STEPS}"]
    known = {spec.name: spec for spec in inputs}
    faults: list[str] = []
    filled_names: list[str] = []
    for before in processing.before:
        if not before.input and len(inputs) != 1:
            faults.append(f"before: 'input' must name one of {', '.join(known)}")
            continue
        name = before.input or inputs[0].name
        if before.raw in known and before.raw != name:
            faults.append(f"before {name}: raw is {before.raw!r}, which is another input's name")
        for filled, sample_type in _filled_inputs(name, before, faults).items():
            filled_names.append(filled)
            if filled not in known:
                faults.append(f"before {name}: the model has no input {filled!r}, expected {', '.join(known)}")
            else:
                faults += _input_faults(known[filled], sample_type)
    faults += [
        f"two entries fill input {name!r}"
        for name in sorted({name for name in filled_names if filled_names.count(name) > 1})
    ]
    raws = [before.raw or before.input or "" for before in processing.before]
    if len(set(raws)) < len(raws):
        faults.append("before: two entries have the same raw name")
    try:
        output_specs(processing, outputs)
    except DataError as error:
        faults.append(f"after: {error}")
    return faults


def output_specs(processing: Processing, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The outputs after the last step.

    Raises:
        DataError: A step does not fit its input tensors.
    """
    specs: Specs = {spec.name: spec for spec in outputs}
    for step in processing.after:
        specs = step.specs(specs)
    return tuple(specs.values())


def output_labels(processing: Processing) -> dict[str, tuple[str, ...]]:
    """Class names by the name of the output with class indices (from 0)."""
    names = [step.labels for step in processing.after if isinstance(step, TopK | Suppress) and step.labels]
    return {"classes": names[-1]} if names else {}


def _filled_inputs(name: str, before: Before, faults: list[str]) -> dict[str, SampleType]:
    """Dtype and shape of a sample for each input that `before` fills; faults are added to `faults`."""
    sample_type = BYTES
    sample_types: dict[str, SampleType] = {}
    try:
        for step in before.steps:
            sample_type = step.output_type(sample_type)
            if isinstance(step, WordPieces):
                sample_types.update({side: sample_type for side in (step.mask, step.types) if side})
    except DataError as error:
        faults.append(f"before {name}: {error}")
        return {}
    if sample_type == BYTES:
        faults.append(f"before {name}: there are no steps")
        return {}
    return {name: sample_type, **sample_types}


def _input_faults(spec: TensorSpec, sample_type: SampleType) -> list[str]:
    """Compare a row (all axes after the batch) with an input; sizes that depend on the bytes are checked later."""
    row = spec.shape[1:]
    fits = (
        bool(spec.shape)
        and spec.shape[0] in (None, 1)
        and len(row) == len(sample_type.shape)
        and all(have is None or want is None or have == want for have, want in zip(sample_type.shape, row, strict=True))
    )
    if fits and sample_type.dtype is spec.dtype:
        return []
    expected = SampleType(spec.dtype, row).text
    return [f"before {spec.name}: the steps end in {sample_type.text}, the model takes {expected} per row"]
