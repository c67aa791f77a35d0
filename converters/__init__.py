"""Conversion on a workstation or in CI: a model file in, proven bundles out.

May import edgekit; never device_agents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.api import convert
    from converters.report.report import Report

__all__ = ["Report", "convert"]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: a conversion with nothing to do loads no heavy library."""
    if name == "convert":
        from converters.api import convert

        return convert
    if name == "Report":
        from converters.report.report import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
