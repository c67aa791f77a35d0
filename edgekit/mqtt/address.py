"""A broker's address: its URL, its TLS files, and messages for failed connections."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from edgekit.errors import SettingsError

PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerAddress(NamedTuple):
    """A broker's address. Its text form leaves out user and password."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def parse_url(url: str) -> BrokerAddress:
    """Parse ``mqtt://[user[:password]@]host[:port]`` or ``mqtts://...``; user and password are percent-encoded.

    Raises:
        SettingsError: `url` has another form.
    """
    expected = "Expected mqtt://host:1883, or mqtts://host:8883 for TLS."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"broker URL {url!r} cannot be read: {error}", advice=expected) from error
    if parts.scheme not in PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingsError(f"broker URL {_hide_password(parts)!r} is malformed", advice=expected)
    username = unquote(parts.username) if parts.username is not None else None
    password = unquote(parts.password) if parts.password is not None else None
    return BrokerAddress(parts.hostname, port or PORTS[parts.scheme], parts.scheme == "mqtts", username, password)


def without_user(url: str) -> str:
    """`url` without user and password, which belong to whoever connects. Raises as `parse_url`."""
    parse_url(url)
    return _hide_password(urlsplit(url))


def tls_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """A client's TLS context.

    Args:
        ca: PEM file of the authorities that may sign the broker's certificate; the system's authorities where None.
        certificate, key: PEM files of the client's own certificate; None for none.

    Raises:
        SettingsError: a file is missing or malformed.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        if certificate is not None:
            # With an encrypted key and no password, OpenSSL would ask at the terminal and wait.
            context.load_cert_chain(str(certificate), str(key) if key else None, password="")
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(str(path) for path in (ca, certificate, key) if path)
        raise SettingsError(f"TLS files {names} cannot be used: {error}") from error
    return context


def explain_failure(error: Exception, timeout_seconds: float) -> str:
    """A failed connection's cause, as the end of a sentence."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return f"the host name cannot be resolved ({error.strerror})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_seconds:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def _hide_password(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
