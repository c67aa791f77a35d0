"""Bundles, trust, the registry, the control side, runtimes and serving.

May import neither converters nor device_agents; its commands load them when they run.
"""

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import TargetProfile

__all__ = ["Manifest", "Recipe", "TargetProfile"]

__version__ = "0.2.0.dev0"  # the only place; the package's metadata is made from it
