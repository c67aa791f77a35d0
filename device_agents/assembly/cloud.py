"""Builds the clients of the cloud tier from settings."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from device_agents.inference.cloud.endpoints import CloudEndpoint, CloudEndpoints
from device_agents.inference.cloud.http_client import without_user
from device_agents.inference.cloud.protection import client_tls, is_readable
from device_agents.inference.cloud.retry_budget import RetryBudget
from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.routing_rules import Reason
from edgekit.errors import CloudError, SettingsError
from edgekit.protocols import CloudAnswer
from edgekit.settings import AgentSettings
from edgekit.tensors import Array

_log = logging.getLogger(__name__)


class LaterClient:
    """CloudTier whose API key or files for TLS could not be read; each call tries again to read them.

    Args:
        make: Makes the client; raises SettingsError.
    """

    def __init__(self, make: Callable[[], CloudClient]) -> None:
        self._make = make
        self._client: CloudClient | None = None

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        timeout_seconds: float,
        wanted: Collection[str] | None = None,
        postprocess: bool | None = None,
    ) -> CloudAnswer:
        """See CloudTier.infer. Raises CloudError, also where the files still cannot be read."""
        if self._client is None:
            try:
                self._client = await asyncio.to_thread(self._make)
            except SettingsError as error:
                raise CloudError(str(error)) from error
        return await self._client.infer(
            model, inputs, timeout_seconds=timeout_seconds, wanted=wanted, postprocess=postprocess
        )

    def close(self) -> None:
        """Close the unused connections."""
        if self._client is not None:
            self._client.close()


def make_cloud(settings: AgentSettings) -> CloudEndpoints | None:
    """The endpoints of the cloud tier that the settings name; None for none.

    Where the API key or a file for TLS cannot be read, models answer, and calls of the cloud tier fail until it can.
    """
    retries = RetryBudget()
    clients: Mapping[str, CloudClient | LaterClient]
    try:
        clients = make_cloud_clients(settings, retries)
    except SettingsError as error:
        _log.error("cloud tier: %s; models answer locally meanwhile. %s", error, error.advice)
        again = functools.partial(_client, settings, retries)
        clients = {url: LaterClient(functools.partial(again, url)) for url in settings.all_cloud_urls()}
    if not clients:
        return None

    def endpoints(model: str) -> tuple[CloudEndpoint, ...]:
        urls = settings.cloud_urls_of(model)
        return tuple(CloudEndpoint(without_user(url), clients[url], endpoint_hold(settings, url)) for url in urls)

    def close() -> None:
        for client in clients.values():
            client.close()

    own = {name: endpoints(name) for name, one in settings.models.items() if one.cloud_url is not None}
    return CloudEndpoints(endpoints(""), own, retries=retries, close=close)


def make_cloud_clients(settings: AgentSettings, retries: RetryBudget) -> dict[str, CloudClient]:
    """A client for each endpoint that the settings name, by URL.

    Raises:
        SettingsError: the API key or a file for TLS cannot be read.
    """
    urls = settings.all_cloud_urls()
    if not urls:
        return {}
    key = _read_key(settings.cloud_api_key_file) if settings.cloud_api_key_file else ""
    tls = _cloud_tls(settings)
    return {url: CloudClient(url, api_key=key, tls=tls, may_retry=retries.take) for url in urls}


def _client(settings: AgentSettings, retries: RetryBudget, url: str) -> CloudClient:
    return make_cloud_clients(settings, retries)[url]


def endpoint_hold(settings: AgentSettings, url: str) -> Reason | None:
    """Why an endpoint may never be called: the API key would travel where it can be read; None where it may be."""
    refused = is_readable(url) and settings.cloud_api_key_file and not settings.cloud_unencrypted
    return Reason.UNENCRYPTED if refused else None


def _cloud_tls(settings: AgentSettings) -> ssl.SSLContext | None:
    """For https: the authorities, read once and before requests come, and a certificate; None without https."""
    if not any(url.startswith("https://") for url in settings.all_cloud_urls()):
        return None
    return client_tls(settings.cloud_ca, settings.cloud_certificate, settings.cloud_key)


def _read_key(path: Path) -> str:
    advice = "cloud_api_key_file names a file with the key that `edgekit cloud key` has made."
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the API key file {path} cannot be read: {error}", advice=advice) from error
    if not key:
        raise SettingsError(f"the API key file {path} is empty", advice=advice)
    return key
