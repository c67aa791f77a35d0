"""The offload certificates of the active bundles: reads them, and tells what happens to them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agents.inference.certified import Held, News
from device_agents.inference.refutation_store import RefutationStore
from edgekit.bundle.manifest import Manifest
from edgekit.certificate.document import certificate_entry, parse_certificate, void_reasons
from edgekit.errors import EdgekitError, ManifestError
from edgekit.protocols import Disk
from edgekit.sealing.opening import read_file
from edgekit.versions import runtime_version

_log = logging.getLogger(__name__)

Listener = Callable[[str, str, str, dict[str, Any]], None]


class Certificates:
    """The certificates on this device, by model and bundle digest.

    Args:
        per_day: Most answers of a model that are explored in a day.
        disk: Folder where the evidence against certificates is stored; None where a restart forgets it.
    """

    def __init__(self, per_day: int, disk: Disk | None = None) -> None:
        self._per_day, self._store = per_day, RefutationStore(disk)
        self._held: dict[str, tuple[str, Held | None]] = {}
        self._listener: Listener | None = None
        self._untold: list[tuple[str, str, str, dict[str, Any]]] = []

    def listen(self, listener: Listener) -> None:
        """Call ``listener(kind, model, message, detail)`` for each piece of news, and for those that came before."""
        self._listener = listener
        while self._untold:
            listener(*self._untold.pop(0))

    def of(self, model: str, digest: str) -> Held | None:
        """The certificate of the bundle `digest` of a model; None where it has none that can be read."""
        found = self._held.get(model)
        return found[1] if found is not None and found[0] == digest else None

    def take(self, model: str, manifest: Manifest, folder: Path) -> None:
        """Read the certificate of a bundle that is now active. One that cannot be read or does not hold is told."""
        digest = manifest.digest
        if self.of(model, digest) is not None:
            return  # activated again: what was explored stays
        self._held[model] = (digest, None)
        entry = certificate_entry(manifest)
        if entry is None:
            return
        try:
            data = read_file(manifest, folder, entry)
            if manifest.sealed is None and hashlib.sha256(data).hexdigest() != entry.sha256:
                raise ManifestError(f"{entry.path} was changed")
            certificate = parse_certificate(data)
        except (EdgekitError, OSError) as error:
            self.tell(News.VOID, model, f"the certificate cannot be read: {error}", {})
            return
        void = tuple(void_reasons(certificate, manifest, runtime_version(manifest.runtime)))
        held = Held(certificate, void, self._per_day)
        self._store.restore(held)
        self._held[model] = (digest, held)
        if void:
            self.tell(
                News.VOID, model, "the certificate does not hold here: " + "; ".join(void), {"id": certificate.id}
            )

    def forget(self, model: str) -> None:
        """Drop the certificate of a model that is no longer active."""
        self._held.pop(model, None)

    async def explored(self, held: Held) -> None:
        """Store the evidence on a certificate, now and then, and a refutation at once."""
        await self._store.keep(held)

    async def close(self) -> None:
        """Store the evidence on every certificate."""
        for _, held in self._held.values():
            if held is not None:
                await self._store.store(held)

    def tell(self, news: News, model: str, message: str, detail: dict[str, Any]) -> None:
        """Log a piece of news and pass it to the listener."""
        _log.warning("model %s: %s", model, message)
        if self._listener is None:
            self._untold.append((news.value, model, message, detail))
        else:
            self._listener(news.value, model, message, detail)
