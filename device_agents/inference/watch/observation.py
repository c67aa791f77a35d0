"""The facts of an answer that the router gives to collectors of samples. Pure.

Only inputs that the egress rule releases get here: a listener may keep whatever it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from device_agents.inference.egress_rules import release_sample
from device_agents.inference.request import Request
from edgekit.bundle.manifest import Task
from edgekit.serving.models.options import SendInputs
from edgekit.tensors import Array, TensorSpec


class Observation(NamedTuple):
    """One answer of the local model, and that of the cloud tier where it was asked.

    Attributes:
        model, version, digest: The bundle that answered.
        task: Its task.
        input_specs, output_specs: Its logical tensors.
        inputs: The inputs, as they might be sent to the cloud tier.
        local: The model's own outputs.
        unsure: True for each row (N,) that is not sure enough; None where rows have no scores of their own.
        score: Score of the least certain row; None where the task has none.
        cloud: Outputs of the cloud tier; None where it did not answer.
        cloud_rows: True for each row (N,) that it answered; None for all.
        cloud_model: Digest of the bundle that answered there.
    """

    model: str
    version: str
    digest: str
    task: Task
    input_specs: tuple[TensorSpec, ...]
    output_specs: tuple[TensorSpec, ...]
    inputs: Mapping[str, Array]
    local: Mapping[str, Array]
    unsure: Array | None = None
    score: float | None = None
    cloud: Mapping[str, Array] | None = None
    cloud_rows: Array | None = None
    cloud_model: str = ""


class TakesSamples(Protocol):
    """Takes observations, in the event loop; it returns at once and raises nothing."""

    def wants(self, model: str) -> bool:
        """Whether it takes observations of a model at present."""
        ...

    def take(self, seen: Observation) -> None:
        """Take one. The arrays belong to the request: whatever is kept must be copied."""
        ...


def observation(
    request: Request,
    policy: SendInputs,
    local: Mapping[str, Array],
    *,
    unsure: Array | None,
    score: float | None,
    cloud: Mapping[str, Array] | None = None,
    cloud_rows: Array | None = None,
    cloud_model: str = "",
) -> Observation | None:
    """The observation of an answer; None where its inputs may not leave the device.

    Args:
        request: An answered request.
        policy: The policy of the model's inputs.
        local, unsure, score, cloud, cloud_rows, cloud_model: As in `Observation`.
    """
    session = request.session
    if session is None:
        return None
    released = release_sample(policy, request.model, request.inputs, route=request.route, stateful=request.stateful)
    if released.fault:
        return None
    return Observation(
        model=request.model,
        version=session.manifest.version,
        digest=session.digest,
        task=session.manifest.task,
        input_specs=tuple(session.inputs),
        output_specs=tuple(session.outputs),
        inputs=released.inputs,
        local=local,
        unsure=unsure,
        score=score,
        cloud=cloud,
        cloud_rows=cloud_rows,
        cloud_model=cloud_model,
    )
