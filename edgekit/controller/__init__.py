"""The controller: advances rollouts, serves blocks and metadata to devices, and stores their reports.

It is given its transport, store and database; it opens none of them itself. The rules of rollouts are in
`edgekit.rollout`, those of broadcasts in `edgekit.transfer`.
"""

from __future__ import annotations

from edgekit.controller.service import Controller, ControllerOptions

__all__ = ["Controller", "ControllerOptions"]
