"""Workstation and CI: models in, proven bundles out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.api import convert
    from converters.report.report import Report

__all__ = ["Report", "convert"]


def __getattr__(name: str) -> Any:
    """Import on first use: what says that there is nothing to do needs none of the libraries that convert."""
    if name == "convert":
        from converters.api import convert

        return convert
    if name == "Report":
        from converters.report.report import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
