"""Renews this device's TLS certificate before its end; the old one stays until the new one has connected."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
from securesystemslib.signer import CryptoSigner

from device_agents.control.events import EventSender
from device_agents.control.renewal_rules import is_aged, is_due, rest_seconds
from device_agents.control.requests import RequestClient
from device_agents.threads import in_thread
from edgekit.errors import DataError, DiskError, EdgekitError, UnavailableError
from edgekit.identity.authority import expiry_of, generate_tls_key, make_request, private_pem
from edgekit.mqtt.joining_messages import CertificateRequest
from edgekit.protocols import Clock
from edgekit.trust.envelopes import seal

log = logging.getLogger(__name__)

CHECK_SECONDS, RETRY_SECONDS = 3600.0, 300.0
NEW_SUFFIX = ".new"
_PAIR = msgspec.msgpack.Decoder(tuple[bytes, bytes])


class CertificateParts(NamedTuple):
    """The files of the device's certificate, and what tries and uses them.

    Attributes:
        certificate, key: PEM files of the certificate in use and of its private key.
        probe: Connects once with a certificate and a key; raises EdgekitError when the broker does not accept them.
        adopt: Lets the agent's next connections use the files in use.
        check_seconds: Interval at which the certificate is looked at.
    """

    certificate: Path
    key: Path
    probe: Callable[[Path, Path], Awaitable[None]]
    adopt: Callable[[], None]
    check_seconds: float = CHECK_SECONDS


class CertificateRenewal:
    """Renews the certificate when a third of its life is left.

    Args:
        device, fleet: Names of this device and its fleet.
        parts: Files, and what tries and uses them.
        requests: Sends the request.
        signer: The device's private key, which signs the request.
        events: Sends an event when the certificate was renewed, or could not be.
        clock: Wall time, which may be wrong, and monotonic time.
    """

    def __init__(
        self,
        device: str,
        fleet: str,
        parts: CertificateParts,
        *,
        requests: RequestClient,
        signer: CryptoSigner,
        events: EventSender,
        clock: Clock,
    ) -> None:
        self._device, self._fleet, self._parts = device, fleet, parts
        self._requests, self._signer, self._events, self._clock = requests, signer, events, clock
        self._failed = ""
        self._rests_until = float("-inf")  # monotonic seconds

    async def run(self) -> None:
        """Look at the certificate at an interval, until cancelled. Without a broker or a controller, try again soon."""
        while True:
            wait = self._parts.check_seconds
            try:
                if await in_thread(self._due):
                    await self._renew()
                    self._failed = ""
            except EdgekitError as error:
                log.warning("the certificate was not renewed, the old one stays: %s", error)
                if isinstance(error, UnavailableError):
                    wait = min(wait, RETRY_SECONDS)
                if self._failed != type(error).__name__:  # once for each kind, until it succeeds
                    self._failed = type(error).__name__
                    self._events.send("certificate-not-renewed", "", self._failed, str(error))
            await asyncio.sleep(wait)

    def _due(self) -> bool:
        if self._clock.monotonic() < self._rests_until:
            return False
        begin, end = expiry_of(_read(self._parts.certificate))
        now = self._clock.wall()
        return is_due(begin, end, now) or is_aged(begin, end, now - _written(self._parts.certificate))

    async def _renew(self) -> None:
        key = generate_tls_key()
        csr = make_request(key, self._device)

        def sign(request_id: str) -> bytes:
            return seal(CertificateRequest(request_id, self._device, self._fleet, csr), self._signer)

        try:
            certificate, _ = _PAIR.decode(await self._requests.certificate(sign))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"the controller's answer is no certificate: {error}") from error
        begin, end = expiry_of(certificate)
        pair = self._parts.certificate, self._parts.key
        fresh = await in_thread(write_new, *pair, certificate, private_pem(key))
        await self._parts.probe(*fresh)
        await in_thread(settle_pair, *pair, fresh)
        self._parts.adopt()
        log.info("the certificate was renewed; the new one has connected")
        message = "the new certificate has connected"
        if rest := rest_seconds(begin, end, self._clock.wall()):
            self._rests_until = self._clock.monotonic() + rest
            message += "; by this device's clock it is due again already, so this clock is ahead: set it"
        self._events.send("certificate-renewed", "", "", message, {"expires": end})


def write_new(certificate: Path, key: Path, pem: bytes, private: bytes) -> tuple[Path, Path]:
    """Write a new certificate and its key beside those in use, both to the disk itself.

    Returns:
        Paths of the new certificate and of its key.

    Raises:
        DiskError: they cannot be written.
    """
    fresh = _new(certificate), _new(key)
    try:
        for path, data in zip(fresh, (pem, private), strict=True):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"the new certificate cannot be written: {error.strerror or error}") from error
    return fresh


def settle_pair(certificate: Path, key: Path, fresh: tuple[Path, Path]) -> None:
    """Put the new files in the place of the old ones, the key first. Raises DiskError."""
    try:
        os.replace(fresh[1], key)
        os.replace(fresh[0], certificate)
    except OSError as error:
        raise DiskError(f"the new certificate cannot be put into place: {error.strerror or error}") from error


def mend_pair(certificate: Path, key: Path) -> None:
    """Finish a renewal that a power cut interrupted between the key and the certificate.

    Then the key belongs to the new certificate, which lies beside the old one.
    """
    fresh = _new(certificate)
    if fresh.exists() and not fits(certificate, key) and fits(fresh, key):
        os.replace(fresh, certificate)


def fits(certificate: Path, key: Path) -> bool:
    """True if a certificate and a private key can be used together."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(str(certificate), str(key), password="")
    except (OSError, ssl.SSLError):
        return False
    return True


def _new(path: Path) -> Path:
    return path.with_name(path.name + NEW_SUFFIX)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise DiskError(f"the certificate {path} cannot be read: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DiskError(f"the certificate {path} cannot be read: {error.strerror or error}") from error
