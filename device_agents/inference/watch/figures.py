"""The figures of the inference service by model: rising counters and present values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from device_agents.inference.watch.counters import NO_MODEL
from device_agents.inference.watch.drift import DriftWatch
from edgekit.serving.models.manager import ModelManager

if TYPE_CHECKING:
    from device_agents.inference.fallback import Fallback

Figures = dict[str, dict[str, float]]


def totals(requests: Mapping[str, Mapping[str, int]], manager: ModelManager, fallback: Fallback | None) -> Figures:
    """The counters of `requests`, and those of models and of the cloud tier."""
    found: Figures = {}
    for name, counters in requests.items():
        model = manager.get(name)
        own = model.counters if model else NO_MODEL
        found[name] = {key: float(n) for key, n in (*counters.items(), *own.items())}
        found[name]["crashes"] = float(model.crashes if model else 0)
    for name, counts in (fallback.counters() if fallback else {}).items():
        found[name] |= counts
    return found


def present(manager: ModelManager, drift: DriftWatch) -> Figures:
    """Values of models with a bundle; measures the memory of workers, up to a millisecond each.

    `memory_bytes` (0 while unloaded), `waiting` requests, `loaded` (1 or 0), `restarts` of its worker, open
    `streams` of a model with state; where drift is tested, `drifting` subjects and `drift_samples`.
    """
    found: Figures = {}
    for name, model in manager.all().items():
        if model.bundle is None:
            continue
        session = model.session
        found[name] = {
            "memory_bytes": (session.memory_bytes() or model.bytes) if session else 0,
            "waiting": model.waiting + (session.pending if session else 0),
            "loaded": float(session is not None),
            "streams": len(session.streams) if session and session.streams is not None else 0,
            "restarts": getattr(session.runtime, "restarts", 0) if session else 0,
            **drift.gauges(name),
        }
    return found
