"""Sketches of what the inference service answers, by bundle.

Latency, routes and scores are of all requests; classes and input values are of one request a second. Pure rules: `now`
is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgekit.bundle.manifest import Task
from edgekit.sketches.histogram import Histogram, of_histogram
from edgekit.sketches.signals import (
    CLASS,
    DIGEST_CHARACTERS,
    EXPONENTS,
    INPUT,
    LATENCY,
    ROUTE,
    ROUTES,
    SCORE,
    Signal,
    latency_value,
)
from edgekit.sketches.sketch import Recorder, Sketch
from edgekit.tensors import Array

SAMPLE_SECONDS = 1.0
VALUES = 64  # of one input of one sampled request
MAX_INPUTS = 8
_ERROR = ROUTES.index("error")
_LARGEST = 1e30


class _Bundle:
    """The open sketches of one bundle."""

    def __init__(self) -> None:
        self.recorders = {name: Recorder(EXPONENTS[name]) for name in (LATENCY, ROUTE, SCORE, CLASS)}
        self.inputs: dict[str, tuple[Histogram, int]] = {}  # values, and how many requests gave them
        self.sampled = float("-inf")


class ServedSketches:
    """Collects the sketches since they were taken last.

    Args:
        tells_inputs: True for a model whose inputs may be counted.
    """

    def __init__(self, tells_inputs: Callable[[str], bool] = lambda model: True) -> None:
        self._tells_inputs = tells_inputs
        self._bundles: dict[tuple[str, str], _Bundle] = {}

    def answered(self, model: str, digest: str, *, seconds: float, route: str, score: float | None) -> None:
        """Count an answer.

        Args:
            model: Name of the model.
            digest: Digest of the device's bundle.
            seconds: Time from the request to the answer.
            route: ``local``, ``cloud`` or ``degraded``.
            score: Score of the local answer, 0 to 1; None where there is none.
        """
        recorders = self._of(model, digest).recorders
        recorders[LATENCY].add(latency_value(seconds))
        recorders[ROUTE].add(ROUTES.index(route))
        if score is not None:
            recorders[SCORE].add(score)

    def failed(self, model: str, digest: str) -> None:
        """Count a request that failed."""
        self._of(model, digest).recorders[ROUTE].add(_ERROR)

    def wants_sample(self, model: str, digest: str, now: float) -> bool:
        """True about once a second (`now` is monotonic); then `sample` should get the request."""
        bundle = self._of(model, digest)
        if now - bundle.sampled < SAMPLE_SECONDS:
            return False
        bundle.sampled = now
        return True

    def sample(
        self, model: str, digest: str, task: Task, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """Count the classes of one request, and the input values where they may be counted.

        Args:
            model, digest: As `answered`.
            task: Task of the model; names the output of the decision.
            inputs, outputs: Logical tensors of the local model.
        """
        bundle = self._of(model, digest)
        decided = outputs.get(task.output)
        if task.kind == "classification" and decided is not None and decided.ndim and decided.size:
            bundle.recorders[CLASS].add(float(np.argmax(decided.reshape(-1, decided.shape[-1])[0])))
        for name, value in inputs.items() if self._tells_inputs(model) else ():
            found = _histogram(value)
            if found is None or (name not in bundle.inputs and len(bundle.inputs) >= MAX_INPUTS):
                continue
            before = bundle.inputs.get(name)
            bundle.inputs[name] = (before[0].merged(found), before[1] + 1) if before else (found, 1)

    def take(self) -> dict[str, Sketch]:
        """The sketches since the last call, by their names in telemetry."""
        taken: dict[str, Sketch] = {}
        for (model, digest), bundle in self._bundles.items():
            for name, recorder in bundle.recorders.items():
                if (sketch := recorder.sketch()) is not None:
                    taken[Signal(model, digest, name).key] = sketch
            for name, (histogram, samples) in bundle.inputs.items():
                taken[Signal(model, digest, INPUT + name[:VALUES]).key] = of_histogram(histogram, samples)
        self._bundles = {}
        return taken

    def _of(self, model: str, digest: str) -> _Bundle:
        key = (model, digest[:DIGEST_CHARACTERS])
        if key not in self._bundles:
            self._bundles[key] = _Bundle()
        return self._bundles[key]


def _histogram(value: Array) -> Histogram | None:
    """Values of a tensor, evenly spread over it; None where there are none, or one is no number."""
    if value.dtype.kind not in "fiub" or not value.size:
        return None
    flat = value.reshape(-1)
    spread = flat[:: max(1, flat.size // VALUES)][:VALUES].astype(np.float64)
    return Histogram.of(spread) if np.all(np.abs(spread) < _LARGEST) else None
