"""Finds the rows of requests whose inputs are unlike the data of the conversion, for models whose owner wants that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from device_agents.inference.options import CloudOptions
from device_agents.inference.watch.references import read_reference
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.sample_rows import from_layout
from edgekit.drift.outliers import bounds_of, outlying, samples_for_bounds
from edgekit.drift.statistics import input_statistics
from edgekit.errors import EdgekitError
from edgekit.serving.session.session import Session
from edgekit.tensors import Array

_log = logging.getLogger(__name__)

CLOUD = "cloud"
_ROWS_AT_ONCE = 4  # more are read in a thread, so that other requests go on


class OutlierGate:
    """The bounds of the active bundles.

    Args:
        options: Gives a model's options for the cloud tier.
    """

    def __init__(self, options: Callable[[str], CloudOptions]) -> None:
        self._options = options
        self._bounds: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}

    def take(self, model: str, manifest: Manifest, folder: Path) -> None:
        """Read the bounds of a bundle that is now active. Where it has none, the log says so."""
        self.forget(model)
        if self._options(model).out_of_distribution != CLOUD:
            return
        try:
            reference = read_reference(manifest, folder)
        except (EdgekitError, OSError) as error:
            _log.warning("model %s: out_of_distribution has no effect, its reference cannot be used: %s", model, error)
            return
        bounds = bounds_of(reference) if reference is not None else {}
        if not bounds:
            needed = samples_for_bounds(reference) if reference is not None else 0
            what = f"convert it with at least {needed} rows of data" if needed else "convert it with data of numbers"
            _log.warning(
                "model %s: out_of_distribution has no effect: there are no bounds in its bundle; %s", model, what
            )
            return
        self._bounds[model, manifest.digest] = bounds

    def forget(self, model: str) -> None:
        """Drop the bounds of a model that is no longer active."""
        self._bounds = {key: bounds for key, bounds in self._bounds.items() if key[0] != model}

    def watches(self, model: str, digest: str) -> bool:
        """True where the rows of a bundle's requests are judged."""
        return (model, digest) in self._bounds

    async def rows(self, model: str, session: Session, inputs: Mapping[str, Array]) -> Array:
        """True for each row (N,) of a watched bundle's request that is out of distribution."""
        bounds = self._bounds[model, session.digest]
        samples = {spec.name: from_layout(spec, inputs[spec.name]) for spec in session.inputs if spec.name in inputs}
        count = min((len(one) for one in samples.values()), default=0)
        if count <= _ROWS_AT_ONCE:
            return _judged(bounds, samples, count)
        return await asyncio.to_thread(_judged, bounds, samples, count)


def _judged(bounds: Mapping[str, tuple[float, float]], samples: Mapping[str, Array], count: int) -> Array:
    found = np.zeros(count, dtype=bool)
    for row in range(count):
        values: dict[str, float] = {}
        for name, one in samples.items():
            values |= input_statistics(name, np.asarray(one[row]), lambda: 0.0)  # no statistic by chance has bounds
        found[row] = bool(outlying(bounds, values))
    return found
