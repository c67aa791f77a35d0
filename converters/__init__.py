"""Workstation and CI: models in, proven bundles out."""

from __future__ import annotations

from converters.pipeline import convert
from converters.report import Report

__all__ = ["Report", "convert"]
