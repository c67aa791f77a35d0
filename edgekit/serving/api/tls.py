"""TLS of a server: its certificate, which may be replaced while it runs, and the authority of its clients."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from edgekit.errors import SettingsError


class ServerTls:
    """The certificate of a server, for HTTP and gRPC.

    Args:
        certificate: PEM file of the certificate and of those between it and the root.
        key: PEM file of its private key, without a password.
        client_ca: PEM file of the authority whose certificates clients must have (mutual TLS); None for none.

    Attributes:
        context: For HTTP. New connections get the certificate of the last `reload`.

    Raises:
        SettingsError: a file is missing, or does not fit the others.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self.context = self._open()

    @property
    def asks_clients(self) -> bool:
        """True where clients need a certificate."""
        return self._client_ca is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose changes need `reload`."""
        return self._certificate, self._key

    def reload(self) -> None:
        """Read certificate and key again. On an error the old ones stay in use.

        Raises:
            SettingsError: as the constructor.
        """
        self._open()  # a fault is found here, before it can leave the context in use with half of a pair
        self.context.load_cert_chain(self._certificate, self._key)

    def grpc_credentials(self) -> Any:
        """The credentials of a gRPC server; each new connection reads the files."""
        import grpc

        authority = None if self._client_ca is None else self._client_ca.read_bytes()

        def read() -> Any:
            pairs = [(self._key.read_bytes(), self._certificate.read_bytes())]
            return grpc.ssl_server_certificate_configuration(pairs, root_certificates=authority)

        return grpc.dynamic_ssl_server_credentials(read(), read, require_client_authentication=authority is not None)

    def _open(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        files = f"{self._certificate} and {self._key}"
        try:
            context.load_cert_chain(self._certificate, self._key, password="")  # a prompt would stop a server
            if self._client_ca is not None:
                files = str(self._client_ca)
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"{files} cannot be used for TLS: {error}",
                advice="Name PEM files: a certificate, its private key without a password, the clients' authority.",
            ) from error
        return context
