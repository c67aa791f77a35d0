"""edgekit: the contracts, the trust, the registry and the control side."""

from edgekit.manifest import Manifest
from edgekit.recipe import Recipe
from edgekit.targets import TargetProfile

__all__ = ["Manifest", "Recipe", "TargetProfile"]
