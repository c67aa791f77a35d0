"""Options of the inference service that do not belong to one model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import msgspec

from device_agents.inference.cloud.budget_rules import Budget
from edgekit.runtimes.providers import Acceleration
from edgekit.serving.models.options import (
    CloudInputs,
    FallbackThreshold,
    ModelSettings,
    OutOfDistribution,
    RefutedCertificate,
    SendInputs,
    TelemetryInputs,
)

ALLOWED, DECODED, NEVER = "allowed", "decoded", "never"
ORIGINAL = "original"
ALL, LOCAL_ONLY = "all", "local-only"
_SENDS_ALL = 2.0  # no score is that high


class ServiceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the inference service; fields with the name of an agent setting mean the same.

    Attributes:
        threads: Threads of each model's runtime.
        memory_budget_bytes: Memory budget of all models together; 0 for no limit.
        deadline_ms: Deadline of requests that set none, in milliseconds; 0 for no deadline.
        cloud_model: Name of every model in the cloud tier; empty for the same name.
        fallback_threshold: Local answers with a lower score go to the cloud tier; 0 keeps all local, "all" (or a number
            above 1) sends all.
        send_inputs: Whether inputs may leave the device.
        cloud_inputs: The form in which they go to the cloud tier.
        stream_pause_seconds: Shortest time between two calls of the cloud tier for one stream.
        out_of_distribution: What to do with inputs that are unlike the data of the conversion.
        cloud_timeout_seconds: Longest wait for an answer of the cloud tier.
        cloud_calls_per_day, cloud_bytes_per_day: Budget of all models together; 0 for no limit.
        exploration_share: Share of the confident answers under a certificate that is also sent to the cloud tier.
        explorations_per_day: Most such answers of a model in a day.
        refuted_certificate: What a refuted certificate changes.
        telemetry_inputs: Whether telemetry has histograms of inputs.
        drift_seconds: Shortest time between two samples of the test of drift of a model; 0 tests nothing.
        drift_error: Probability that the test of a bundle ever finds a drift where there is none.
        acceleration: ONNX Runtime's execution providers and memory limits; None takes the best installed provider.
    """

    threads: int = 1
    memory_budget_bytes: int = 0
    deadline_ms: float = 0.0
    cloud_model: str = ""
    fallback_threshold: FallbackThreshold = 0.8
    send_inputs: SendInputs = "allowed"
    cloud_inputs: CloudInputs = "decoded"
    stream_pause_seconds: float = 0.0
    out_of_distribution: OutOfDistribution = "ignore"
    cloud_timeout_seconds: float = 2.0
    cloud_calls_per_day: int = 0
    cloud_bytes_per_day: int = 0
    exploration_share: float = 0.0075
    explorations_per_day: int = 1000
    refuted_certificate: RefutedCertificate = "careful"
    telemetry_inputs: TelemetryInputs = "auto"
    drift_seconds: float = 10.0
    drift_error: float = 0.001
    acceleration: Acceleration | None = None

    @property
    def budget(self) -> Budget:
        """The daily budget of all models together."""
        return Budget(self.cloud_calls_per_day, self.cloud_bytes_per_day)


class CloudOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one model uses the cloud tier.

    Attributes:
        cloud_model: Its name there; empty for the same name.
        threshold: Local answers with a lower score go there.
        send_inputs: Whether its inputs may leave the device.
        cloud_inputs: The form in which they go there.
        stream_pause_seconds: Shortest time between two calls for one of its streams.
        out_of_distribution: What to do with its inputs that are unlike the data of the conversion.
        own_threshold: True where the threshold is set for this model; then a certificate's threshold is not used.
        refuted_certificate: What a refuted certificate changes.
        budget: Its daily budget, beside that of all models.
    """

    cloud_model: str = ""
    threshold: float = 0.8
    send_inputs: SendInputs = "allowed"
    cloud_inputs: CloudInputs = "decoded"
    stream_pause_seconds: float = 0.0
    out_of_distribution: OutOfDistribution = "ignore"
    own_threshold: bool = False
    refuted_certificate: RefutedCertificate = "careful"
    budget: Budget = Budget()

    @classmethod
    def of(cls, service: ServiceOptions, model: ModelSettings | None) -> CloudOptions:
        """The options of the service, with those that are set for the model replaced."""
        own = model or ModelSettings()

        def choose(name: str) -> Any:
            value = getattr(own, name)
            return getattr(service, name) if value is None else value

        threshold = choose("fallback_threshold")
        return cls(
            cloud_model=choose("cloud_model"),
            threshold=_SENDS_ALL if threshold == ALL else float(threshold),
            send_inputs=choose("send_inputs"),
            cloud_inputs=choose("cloud_inputs"),
            stream_pause_seconds=choose("stream_pause_seconds"),
            out_of_distribution=choose("out_of_distribution"),
            own_threshold=own.fallback_threshold is not None,
            refuted_certificate=service.refuted_certificate,
            budget=Budget(own.cloud_calls_per_day or 0, own.cloud_bytes_per_day or 0),
        )

    def within(self, send_inputs: SendInputs) -> CloudOptions:
        """These options with another policy of inputs."""
        return self if send_inputs == self.send_inputs else msgspec.structs.replace(self, send_inputs=send_inputs)


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
