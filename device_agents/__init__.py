"""The device: an agent that keeps its models up to date, and inference that answers during an update.

May import edgekit; never converters, TensorFlow, PyTorch, onnx or SQLAlchemy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agents.agent import Agent, AgentOptions
    from device_agents.inference.service import InferenceService

__all__ = ["Agent", "AgentOptions", "InferenceService"]

_HOMES = {"Agent": "agent", "AgentOptions": "agent", "InferenceService": "inference.service"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that inference alone needs no TUF and the agent no runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
