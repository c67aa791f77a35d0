"""The key that signs assignments and commands, compared with the one that the registry trusts."""

from __future__ import annotations

import logging
from collections.abc import Callable

from securesystemslib.signer import CryptoSigner

from edgekit.errors import EdgekitError, UnavailableError
from edgekit.protocols import Clock
from edgekit.registry import RegistryReader

log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0


class Director:
    """The director's signer. Devices refuse what another key than the trusted one has signed.

    The key may be rotated while a controller runs, and a controller on another machine may still have the old one.

    Args:
        signer: The signer that was trusted at the start.
        reader: Verified reader of the registry; it names the trusted key.
        clock: Time.
        load: Loads the trusted key from the key folder; None where there is no folder to look in.

    Attributes:
        signer: Signs assignments and commands.
        trusted: False while the registry trusts another key, which `load` does not find.
    """

    def __init__(
        self,
        signer: CryptoSigner,
        *,
        reader: RegistryReader,
        clock: Clock,
        load: Callable[[], CryptoSigner] | None = None,
    ) -> None:
        self.signer = signer
        self.trusted = True
        self._reader, self._clock, self._load = reader, clock, load
        self._looked = float("-inf")
        self._fault = ""

    @property
    def due(self) -> bool:
        """True if the last look was a while ago."""
        return self._clock.monotonic() - self._looked >= CHECK_SECONDS

    def look(self) -> None:
        """Compare the key with the registry's, and load the new one after a rotation. Reads files.

        A registry that cannot be read now changes nothing.
        """
        self._looked = self._clock.monotonic()
        try:
            self._reader.refresh()
            expected = self._reader.director_key().keyid
        except EdgekitError as error:
            log.info("the director's key cannot be compared with the registry: %s", error)
            return
        if expected != self.signer.public_key.keyid:
            self._replace(expected)
        self.trusted = expected == self.signer.public_key.keyid
        if self.trusted and self._fault:
            log.warning("the director's key is here now: assignments and commands are signed again")
            self._fault = ""

    def _replace(self, expected: str) -> None:
        old = self.signer.public_key.keyid
        try:
            if self._load is None:
                raise UnavailableError("there is no key folder to load it from")
            signer = self._load()
        except EdgekitError as error:
            fault = (
                f"the registry trusts the director's key {expected[:12]}, and this controller has {old[:12]}: devices "
                f"would refuse what it signs, so rollouts and commands stand still ({error}). Copy the key folder from "
                "where the key was rotated, or restart the controller with the passphrase of the new key"
            )
            if fault != self._fault:
                log.error("%s", fault)
                self._fault = fault
            return
        if signer.public_key.keyid == expected:
            log.warning("the director's key was rotated: assignments are signed with %s now", expected[:12])
            self.signer = signer
