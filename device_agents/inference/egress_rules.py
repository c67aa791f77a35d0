"""Rules of what may leave the device, to the cloud tier or as a sample: policies of models, pauses of streams. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import msgspec

from device_agents.inference.options import ALLOWED, DECODED, CloudOptions
from device_agents.inference.routing_rules import LOCAL_ONLY as LOCAL_ONLY_ROUTE
from edgekit.serving.models.options import SendInputs, TelemetryInputs
from edgekit.tensors import Array, DType

MOST_STREAMS = 4096  # of all models; the one that was sent longest ago is forgotten first, and may be sent sooner


_WHERE = "send_inputs of the settings or of the bundle"
_ORDER: tuple[SendInputs, ...] = ("allowed", "decoded", "never")
_STRICTNESS: dict[str, int] = {policy: strictness for strictness, policy in enumerate(_ORDER)}


class Release(msgspec.Struct, frozen=True):
    """Inputs that may leave the device; none where `fault` says why."""

    inputs: dict[str, Array] = {}
    fault: str = ""


def release(policy: SendInputs, model: str, inputs: Mapping[str, Array]) -> Release:
    """Inputs of a model that may leave the device under a policy; a request leaves whole or not at all.

    Args:
        policy: ``allowed``: everything. ``decoded``: numbers, and never bytes as a client sent them (an encoded image,
            a text). Any other value, as ``never``: nothing.
        model: Its name, for the message.
        inputs: Inputs by name, as they would be sent.
    """
    if policy == ALLOWED:
        return Release(dict(inputs))
    if policy != DECODED:
        return Release(
            fault=f"inputs of model {model!r} may not leave this device (send_inputs of the settings or the bundle)"
        )
    raw = sorted(name for name, value in inputs.items() if DType.of(value.dtype) is DType.BYTES)
    if raw:
        return Release(
            fault=f"input {', '.join(map(repr, raw))} of model {model!r} is bytes, and only decoded tensors may leave "
            f"this device ({_WHERE})"
        )
    return Release(dict(inputs))


def release_sample(
    policy: SendInputs, model: str, inputs: Mapping[str, Array], *, route: str, stateful: bool
) -> Release:
    """Inputs of an answered request that may leave the device later, as a sample.

    What may not be sent to the cloud tier may not be kept for the operator either: the same policy holds, and also what
    the client asked for, and that requests of a model with state stay here.

    Args:
        policy, model, inputs: As `release`.
        route: The route that the client asked for.
        stateful: True for a request of a stream.
    """
    if route == LOCAL_ONLY_ROUTE:
        return Release(fault=f"the client asked that nothing of the request leaves this device ({route})")
    if stateful:
        return Release(fault=f"model {model!r} has state, and single steps of a stream are no samples")
    return release(policy, model, inputs)


def stricter(one: str, other: str) -> SendInputs:
    """The stricter of two policies; one that is not known counts as ``never``."""
    return _ORDER[max(_STRICTNESS.get(policy, len(_ORDER) - 1) for policy in (one, other))]


class BundleLimits:
    """The policies of the bundles of this device, by model; a model without a bundle has none here."""

    def __init__(self) -> None:
        self._limits: dict[str, SendInputs] = {}

    def of(self, model: str) -> SendInputs:
        """The limit of a model's bundles."""
        return self._limits.get(model, _ORDER[0])

    def within(self, options: Callable[[str], CloudOptions]) -> Callable[[str], CloudOptions]:
        """`options` of each model with the stricter policy of the settings and of its bundles."""

        def limited(model: str) -> CloudOptions:
            own = options(model)
            return own.within(stricter(own.send_inputs, self.of(model)))

        return limited

    def begin(self, model: str, limit: str) -> SendInputs:
        """A bundle with this limit is about to answer; until `settle` the stricter one holds. Returns the old one."""
        before = self.of(model)
        self._limits[model] = stricter(before, limit)
        return before

    def settle(self, model: str, limit: str) -> None:
        """The bundle that answers from now on has this limit."""
        self._limits[model] = stricter(ALLOWED, limit)


def tells_inputs(telemetry: TelemetryInputs, policy: SendInputs, limit: SendInputs) -> bool:
    """True where histograms of values of a model's inputs may leave the device.

    Args:
        telemetry: What the owner says of histograms.
        policy: The policy of the inputs themselves, the stricter one of settings and bundle.
        limit: That of the bundle, which the owner cannot widen.
    """
    decisive = limit if telemetry == "always" else policy
    return telemetry in ("always", "auto") and decisive in (ALLOWED, DECODED)


class StreamPauses:
    """When each stream was last sent to the cloud tier."""

    def __init__(self) -> None:
        self._sent: dict[Hashable, float] = {}

    def allow(self, stream: Hashable, now: float, pause_seconds: float) -> bool:
        """True where the stream was not sent for `pause_seconds`; `now` is monotonic seconds."""
        sent = self._sent.get(stream)
        return sent is None or now - sent >= pause_seconds

    def note(self, stream: Hashable, now: float) -> None:
        """Note that the stream is sent now."""
        self._sent.pop(stream, None)
        self._sent[stream] = now
        if len(self._sent) > MOST_STREAMS:
            del self._sent[next(iter(self._sent))]
