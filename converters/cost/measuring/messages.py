"""Requests to the process that is measured, and its answers: one line of JSON each. Pure."""

from __future__ import annotations

import msgspec

EMULATED = "--emulated"  # argument of a process that is emulated


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact to measure.

    Attributes:
        path: The artifact's file.
        runtime: ``litert`` or ``onnxruntime``.
        inputs: A .npz file with the artifact's own inputs for one row.
        layers: Count the layers too, where the runtime's profile has them.
        seconds: Measure times for this long; 0 for none.
    """

    path: str
    runtime: str
    inputs: str
    layers: bool = False
    seconds: float = 0.0


class Layer(msgspec.Struct, frozen=True):
    """An operator that the runtime ran, in its order and with its name; `kernel` is the kind of the operator."""

    name: str
    kernel: str
    instructions: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The measurement of one artifact.

    Attributes:
        instructions: Of one run; None where they could not be counted, and `not_counted` says why.
        runs: Runs that `instructions` is the mean of.
        memory_bytes: The most memory that loading and running the artifact added; see `counters.Memory`.
        milliseconds: Duration of each run, in ascending order.
        layers: The layers of one run; None where the runtime's profile has none, and `no_layers` says why.
        versions: Versions of the runtime and of numpy.
        fault: Why the artifact could not be measured; empty where it was.
    """

    instructions: float | None = None
    not_counted: str = ""
    runs: int = 0
    memory_bytes: int = 0
    milliseconds: tuple[float, ...] = ()
    layers: tuple[Layer, ...] | None = None
    no_layers: str = ""
    versions: dict[str, str] = {}
    fault: str = ""
