"""Options of the inference service that do not belong to one model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import msgspec

from edgekit.runtimes.providers import Acceleration


class ServiceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the inference service; fields with the name of an agent setting mean the same.

    Attributes:
        threads: Threads of each model's runtime.
        memory_budget_bytes: Memory budget of all models together; 0 for no limit.
        deadline_ms: Deadline of requests that set none, in milliseconds; 0 for no deadline.
        fallback_threshold: Local answers with a lower score go to the cloud tier; 0 keeps all local, above 1 sends all.
        cloud_timeout_seconds: Longest wait for an answer of the cloud tier.
        acceleration: ONNX Runtime's execution providers and memory limits; None takes the best installed provider.
    """

    threads: int = 1
    memory_budget_bytes: int = 0
    deadline_ms: float = 0.0
    fallback_threshold: float = 0.8
    cloud_timeout_seconds: float = 2.0
    acceleration: Acceleration | None = None


def with_old_names(options: ServiceOptions | None, old: Mapping[str, Any]) -> ServiceOptions:
    """`options`, with the keyword arguments that release 0.1.0 took one by one; each gives a warning.

    Raises:
        TypeError: an argument was never known.
    """
    options = options or ServiceOptions()
    for name, value in old.items():
        new = {"threshold": "fallback_threshold", "providers": "acceleration"}.get(name, name)
        if new not in ServiceOptions.__struct_fields__:
            raise TypeError(f"InferenceService has no argument {name!r}")
        warnings.warn(
            f"InferenceService({name}=...) is now ServiceOptions({new}=...)", DeprecationWarning, stacklevel=3
        )
        if name == "providers":
            value = None if value is None else Acceleration(providers=tuple(value))
        if value is not None:  # None meant the default
            options = msgspec.structs.replace(options, **{new: value})
    return options
