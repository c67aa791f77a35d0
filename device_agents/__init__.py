"""The device: an agent that keeps its models up to date, and inference that answers during an update.

May import edgekit; never converters, TensorFlow, PyTorch, onnx or SQLAlchemy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agents.agent import Agent
    from device_agents.agent_parts import AgentParts
    from device_agents.inference.options import ServiceOptions
    from device_agents.inference.service import InferenceService
    from device_agents.options import AgentOptions

__all__ = ["Agent", "AgentOptions", "AgentParts", "InferenceService", "ServiceOptions"]

_HOMES = {
    "Agent": "agent",
    "AgentOptions": "options",
    "AgentParts": "agent_parts",
    "InferenceService": "inference.service",
    "ServiceOptions": "inference.options",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that inference alone loads no TUF and the agent alone no runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
