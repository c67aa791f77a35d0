"""A broker's address: its URL, the TLS files that go with it, and why it could not be reached."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from edgekit.errors import SettingsError

PORTS = {"mqtt": 1883, "mqtts": 8883}


class Endpoint(NamedTuple):
    """A broker's address; as text without the password."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def parse_url(url: str) -> Endpoint:
    """Parse ``mqtt://[user[:password]@]host[:port]`` or ``mqtts://...``; user and password are percent-encoded.

    Raises:
        SettingsError: it is something else.
    """
    expected = "Expected mqtt://host:1883, or mqtts://host:8883 for TLS."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"broker URL {url!r} cannot be read: {error}", advice=expected) from error
    if parts.scheme not in PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingsError(f"broker URL {_hide_password(parts)!r} is not a broker's", advice=expected)
    username = unquote(parts.username) if parts.username is not None else None
    password = unquote(parts.password) if parts.password is not None else None
    return Endpoint(parts.hostname, port or PORTS[parts.scheme], parts.scheme == "mqtts", username, password)


def tls_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """A client's TLS context; `ca` None stands for the system's authorities, `certificate` None for no own identity.

    Raises:
        SettingsError: a file is missing or not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        if certificate is not None:
            # Without a password OpenSSL would ask the terminal for the one of an encrypted key, and wait.
            context.load_cert_chain(str(certificate), str(key) if key else None, password="")
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(str(path) for path in (ca, certificate, key) if path)
        raise SettingsError(f"TLS files {names} cannot be used: {error}") from error
    return context


def explain_failure(error: Exception, timeout_seconds: float) -> str:
    """What went wrong while connecting, for people."""
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
