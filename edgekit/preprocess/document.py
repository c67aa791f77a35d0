"""Processing: what happens before and after the model, as the manifest carries it, and every reason why it cannot."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.errors import DataError
from edgekit.preprocess.after import AfterStep, Specs, Suppress, TopK
from edgekit.preprocess.before import BeforeStep
from edgekit.preprocess.steps import BYTES, Flow
from edgekit.preprocess.text_steps import WordPieces
from edgekit.tensors import TensorSpec

MAX_STEPS = 64


class Before(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How bytes that a client sends become one input of the model.

    Attributes:
        input: The model's input; empty where it has only one.
        raw: What clients call the bytes; empty for the input's own name.
        steps: In order; the first decodes.
    """

    steps: tuple[BeforeStep, ...]
    input: str = ""
    raw: str = ""


class Processing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens before and after the model. Nothing of it is code: steps are named, and edgekit does them."""

    before: tuple[Before, ...] = ()
    after: tuple[AfterStep, ...] = ()

    def files(self) -> dict[str, str]:
        """Names of the bundle's files that steps read, with their kind: ``vocabulary`` or ``anchors``."""
        found: dict[str, str] = {}
        for before in self.before:
            for step in before.steps:
                found.update(step.files())
        for last in self.after:
            found.update(last.files())
        return found


class Raw(msgspec.Struct, frozen=True):
    """One thing that clients may send as bytes.

    Attributes:
        name: As they call it.
        input: The model's input that it becomes.
        kind: ``image``, ``sound`` or ``text``.
    """

    name: str
    input: str
    kind: str


_KINDS = {"decode-image": "image", "decode-wav": "sound", "word-pieces": "text"}


def raw_inputs(processing: Processing, inputs: Sequence[TensorSpec]) -> tuple[Raw, ...]:
    """What clients may send as bytes; `processing` has no faults."""
    found = []
    for before in processing.before:
        name = before.input or inputs[0].name
        found.append(Raw(before.raw or name, name, _KINDS[before.steps[0].name]))
    return tuple(found)


def processing_faults(processing: Processing, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[str]:
    """Every reason why `processing` does not fit a model with these logical tensors; empty when it does."""
    count = len(processing.after) + sum(len(before.steps) for before in processing.before)
    if count > MAX_STEPS:
        return [f"processing has {count} steps, the limit is {MAX_STEPS}"]
    known = {spec.name: spec for spec in inputs}
    faults: list[str] = []
    made: list[str] = []
    for before in processing.before:
        if not before.input and len(inputs) != 1:
            faults.append(f"before: 'input' must name one of {', '.join(known)}")
            continue
        name = before.input or inputs[0].name
        if before.raw in known and before.raw != name:
            faults.append(f"before {name}: raw is {before.raw!r}, which is another input's name")
        for filled, flow in _fills(name, before, faults).items():
            made.append(filled)
            if filled not in known:
                faults.append(f"before {name}: the model has no input {filled!r}, expected {', '.join(known)}")
            else:
                faults += _fit(known[filled], flow)
    faults += [f"input {name!r} is made twice" for name in sorted({name for name in made if made.count(name) > 1})]
    raws = [before.raw or before.input or "" for before in processing.before]
    if len(set(raws)) < len(raws):
        faults.append("before: two entries have the same name for clients")
    try:
        output_specs(processing, outputs)
    except DataError as error:
        faults.append(f"after: {error}")
    return faults


def output_specs(processing: Processing, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What the answers are after the last step.

    Raises:
        DataError: a step does not fit what it is given.
    """
    specs: Specs = {spec.name: spec for spec in outputs}
    for step in processing.after:
        specs = step.specs(specs)
    return tuple(specs.values())


def output_labels(processing: Processing) -> dict[str, tuple[str, ...]]:
    """Names of classes, by the output whose numbers count them from 0."""
    names = [step.labels for step in processing.after if isinstance(step, TopK | Suppress) and step.labels]
    return {"classes": names[-1]} if names else {}


def _fills(name: str, before: Before, faults: list[str]) -> dict[str, Flow]:
    """What each input that `before` fills is given; faults are added to `faults`."""
    flow = BYTES
    found: dict[str, Flow] = {}
    try:
        for step in before.steps:
            flow = step.flow(flow)
            if isinstance(step, WordPieces):
                found.update({side: flow for side in (step.mask, step.types) if side})
    except DataError as error:
        faults.append(f"before {name}: {error}")
        return {}
    if flow == BYTES:
        faults.append(f"before {name}: there are no steps")
        return {}
    return {name: flow, **found}


def _fit(spec: TensorSpec, flow: Flow) -> list[str]:
    """A row is what follows the batch axis; sizes that the bytes decide are judged when they are there."""
    row = spec.shape[1:]
    fits = (
        bool(spec.shape)
        and spec.shape[0] in (None, 1)
        and len(row) == len(flow.shape)
        and all(have is None or want is None or have == want for have, want in zip(flow.shape, row, strict=True))
    )
    if fits and flow.dtype is spec.dtype:
        return []
    return [f"before {spec.name}: the steps end in {flow.text}, the model takes {Flow(spec.dtype, row).text} a row"]
