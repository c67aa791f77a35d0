"""The cloud tier: several models and versions from a registry, behind the serving code that devices use too.

The registry's reader is passed in; no other room of `edgekit.serving` knows the registry.
"""

from edgekit.serving.cloud.models import CloudModels

__all__ = ["CloudModels"]
