"""The cloud tier: several models and versions from a registry, behind the serving code that devices use too."""

from edgekit.serving.cloud.models import CloudModels

__all__ = ["CloudModels"]
