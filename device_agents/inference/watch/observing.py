"""Counts what the service answers: in the sketches of telemetry, and in the test of drift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from device_agents.inference.egress_rules import BundleLimits, tells_inputs
from device_agents.inference.options import CloudOptions, ServiceOptions
from device_agents.inference.request import Request
from device_agents.inference.watch.drift import DriftWatch
from device_agents.inference.watch.outliers import OutlierGate
from device_agents.inference.watch.sketching import ServedSketches
from edgekit.bundle.manifest import Manifest
from edgekit.protocols import Clock, Disk
from edgekit.serving.oip.codec import InferResponse
from edgekit.serving.session.session import Session


class Observer:
    """Takes each answer of the service.

    Args:
        service: Options of the service.
        options: Gives a model's options for the cloud tier.
        limits: What the bundles let out of the device.
        clock, disk: As InferenceService.

    Attributes:
        sketches: Sketches for telemetry.
        drift: The test of drift.
        outliers: The gate of inputs out of distribution.
    """

    def __init__(
        self,
        service: ServiceOptions,
        options: Callable[[str], CloudOptions],
        limits: BundleLimits,
        clock: Clock,
        disk: Disk | None,
    ) -> None:
        telemetry = service.telemetry_inputs
        self.sketches = ServedSketches(
            lambda model: tells_inputs(telemetry, options(model).send_inputs, limits.of(model))
        )
        self.drift = DriftWatch(service.drift_seconds, service.drift_error, clock, disk)
        self.outliers = OutlierGate(options)

    def take(self, model: str, manifest: Manifest, folder: Path) -> None:
        """Begin with a bundle that is now active."""
        self.drift.take(model, manifest, folder)
        self.outliers.take(model, manifest, folder)

    def forget(self, model: str) -> None:
        """End with a model that is no longer active."""
        self.drift.forget(model)
        self.outliers.forget(model)

    def answered(
        self, request: Request, session: Session, response: InferResponse, *, seconds: float, now: float
    ) -> None:
        """Count an answer.

        Args:
            request: What was answered.
            session: Session of the device's bundle.
            response: The answer.
            seconds: Time from the request to the answer.
            now: Monotonic seconds.
        """
        name, digest, said = request.model, session.digest, response.parameters
        self.sketches.answered(
            name, digest, seconds=seconds, route=said["edgekit_route"], score=said.get("edgekit_score")
        )
        if self.sketches.wants_sample(name, digest, now):
            self.sketches.sample(name, digest, session.manifest.task, request.inputs, response.outputs)
        if request.local is not None and self.drift.wants(name, now):
            self.drift.sample(name, session, request.inputs, request.local)
