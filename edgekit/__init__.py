"""Bundles, trust, the registry, the control side, runtimes and serving.

May import neither converters nor device_agents; its commands load them when they run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest
    from edgekit.bundle.recipe import Recipe
    from edgekit.bundle.targets import TargetProfile

__all__ = ["Manifest", "Recipe", "TargetProfile"]

__version__ = "0.2.0.dev0"  # the only place; the package's metadata is made from it

_HOMES = {"Manifest": "bundle.manifest", "Recipe": "bundle.recipe", "TargetProfile": "bundle.targets"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: every module of the package runs this file, and most need no numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
