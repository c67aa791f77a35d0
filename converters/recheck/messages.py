"""Requests to the process that answers on a runtime, and its results: one JSON file each. Pure."""

from __future__ import annotations

import msgspec

GOLDEN, PROOF = "golden", "proof"
NOT_THE_RUNTIME = 75  # status of a process that failed for want of disk or memory


class Rows(msgspec.Struct, frozen=True):
    """Samples to answer.

    Attributes:
        name: ``golden`` or ``proof``.
        inputs: A file in the format of golden.npz with the inputs.
        answers: Where to write the answers, in the same format.
        streams: Sizes of the streams that the rows are, one after the other, for a model with state.
    """

    name: str
    inputs: str
    answers: str
    streams: tuple[int, ...] = ()


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Run a bundle.

    Attributes:
        bundle: Folder of the bundle.
        module: The module of the runtime's package.
        rows: Samples to answer; empty to measure one inference.
        first: A file with the artifact's own inputs for the first golden sample: written with the answers, and read
            for the measurement.
        result: Where to write the result.
    """

    bundle: str
    module: str
    rows: tuple[Rows, ...] = ()
    first: str
    result: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a request.

    Attributes:
        fault: Why the bundle could not be loaded or run; empty where it was.
        instructions: Of one inference; None where they were not counted, and `not_counted` says why.
        memory_bytes: As `converters.cost.measuring.messages.Outcome`.
    """

    fault: str = ""
    instructions: float | None = None
    not_counted: str = ""
    memory_bytes: int = 0
