"""The endpoints of the cloud tier: which are asked for a model, in which order, and the retries that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from device_agents.inference.cloud.retry_budget import RetryBudget
from device_agents.inference.routing_rules import Reason
from edgekit.protocols import CloudTier


class CloudEndpoint(NamedTuple):
    """One server of the cloud tier.

    Attributes:
        name: As answers and metrics name it: its URL. Empty where there is only one, which an application has given.
        tier: Its client.
        hold: Why it may never be called; None where it may be.
    """

    name: str
    tier: CloudTier
    hold: Reason | None = None


class CloudEndpoints:
    """The endpoints of a device.

    Args:
        common: For every model without endpoints of its own; the first one is asked first.
        own: By model; empty for a model that has no cloud tier.
        retries: Shared by all of them; the clients take from it too.
        close: Closes the clients.
    """

    def __init__(
        self,
        common: tuple[CloudEndpoint, ...],
        own: Mapping[str, tuple[CloudEndpoint, ...]] | None = None,
        *,
        retries: RetryBudget | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._common, self._own = common, own or {}
        self.retries, self.close = retries or RetryBudget(), close

    def of(self, model: str) -> tuple[CloudEndpoint, ...]:
        """The endpoints of a model, in their order."""
        return self._own.get(model, self._common)


def endpoints_of(cloud: CloudTier | CloudEndpoints | None) -> CloudEndpoints | None:
    """The endpoints of an inference service, which may be given a single client."""
    if cloud is None or isinstance(cloud, CloudEndpoints):
        return cloud
    return CloudEndpoints((CloudEndpoint("", cloud),))
