"""Rules of what may be sent to the cloud tier: the policy of a model's inputs, and the pauses of streams. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import msgspec

from device_agents.inference.options import ALLOWED, DECODED
from edgekit.serving.models.options import SendInputs
from edgekit.tensors import Array, DType

MOST_STREAMS = 4096  # of all models; the one that was sent longest ago is forgotten first, and may be sent sooner


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
        return Release(fault=f"inputs of model {model!r} may not leave this device (send_inputs)")
    raw = sorted(name for name, value in inputs.items() if DType.of(value.dtype) is DType.BYTES)
    if raw:
        return Release(
            fault=f"input {', '.join(map(repr, raw))} of model {model!r} is bytes, and only decoded tensors may leave "
            "this device (send_inputs)"
        )
    return Release(dict(inputs))


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
