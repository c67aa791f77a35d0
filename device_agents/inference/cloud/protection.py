"""Protection of connections to the cloud tier: TLS with files of the operator, and where an API key may travel."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.errors import SettingsError
from edgekit.serving.http.addresses import is_loopback


def is_readable(url: str) -> bool:
    """True where others on the way can read what is sent to a URL: ``http://`` to another host."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def client_tls(authority: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """TLS of a client, whose files are read now.

    Args:
        authority: PEM file of the authority that signed the server's certificate; None for the system's authorities.
        certificate, key: PEM files of the client's own certificate and its private key; None for none.

    Raises:
        SettingsError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password="")  # a prompt would stop the agent
    except OSError as error:
        names = ", ".join(str(path) for path in (authority, certificate, key) if path is not None)
        raise SettingsError(
            f"{names} cannot be used for TLS with the cloud tier: {error}",
            advice="Name PEM files: of the authority, of the certificate, and of its private key without a password.",
        ) from error
    return context
