"""The control side: rollouts, the block and metadata services, and what devices say."""

from __future__ import annotations

from edgekit.controller.service import Controller, ControllerOptions

__all__ = ["Controller", "ControllerOptions"]
