"""The offload certificates of the active bundles: reads them, and tells what happens to them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agents.inference.cascade.certified import Held, News
from device_agents.inference.cascade.refutation_store import RefutationStore
from edgekit.bundle.evidence import Evidence, equal_versions
from edgekit.bundle.manifest import Manifest
from edgekit.certificate.document import (
    ORIGINAL,
    Certificate,
    certificate_entry,
    parse_certificate,
    void_reasons,
)
from edgekit.errors import EdgekitError, ManifestError
from edgekit.protocols import Disk
from edgekit.sealing.opening import read_file
from edgekit.versions import runtime_version

_log = logging.getLogger(__name__)

EvidenceOf = Callable[[str, str], tuple[Evidence, ...]]  # model, digest
Listener = Callable[[str, str, str, dict[str, Any]], None]


class Certificates:
    """The certificates on this device, by model and bundle digest.

    Args:
        per_day: Most answers of a model that are explored in a day.
        disk: Folder where the evidence against certificates is stored; None where a restart forgets it.
        cloud_inputs: Gives the form in which a model's inputs go to the cloud tier.
    """

    def __init__(
        self, per_day: int, disk: Disk | None = None, cloud_inputs: Callable[[str], str] = lambda model: "decoded"
    ) -> None:
        self._cloud_inputs = cloud_inputs
        self._per_day, self._store = per_day, RefutationStore(disk)
        self._evidence: EvidenceOf = lambda model, digest: ()
        self._arch = ""
        self._manifests: dict[str, Manifest] = {}
        self._held: dict[str, tuple[str, Held | None]] = {}
        self._listener: Listener | None = None
        self._untold: list[tuple[str, str, str, dict[str, Any]]] = []

    def listen(self, listener: Listener) -> None:
        """Call ``listener(kind, model, message, detail)`` for each piece of news, and for those that came before."""
        self._listener = listener
        while self._untold:
            listener(*self._untold.pop(0))

    def use_evidence(self, evidence: EvidenceOf, arch: str) -> None:
        """Take signed evidence that another runtime version gives the same bits on this architecture into account."""
        self._evidence, self._arch = evidence, arch

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
        self._manifests[model] = manifest
        void = self._void(model, manifest, certificate)
        held = Held(certificate, void, self._per_day)
        self._store.restore(held)
        self._held[model] = (digest, held)
        if void:
            self.tell(
                News.VOID, model, "the certificate does not hold here: " + "; ".join(void), {"id": certificate.id}
            )

    def renew(self, model: str) -> None:
        """Judge the certificate of a model again, because its bundle has new evidence."""
        found, manifest = self._held.get(model), self._manifests.get(model)
        if found is not None and found[1] is not None and manifest is not None and manifest.digest == found[0]:
            found[1].void = self._void(model, manifest, found[1].certificate)

    def _void(self, model: str, manifest: Manifest, certificate: Certificate) -> tuple[str, ...]:
        running = runtime_version(manifest.runtime)
        same = equal_versions(running, self._arch, self._evidence(model, manifest.digest))
        original = self._cloud_inputs(model) == ORIGINAL and manifest.takes_bytes
        return tuple(void_reasons(certificate, manifest, running, same, original=original))

    def forget(self, model: str) -> None:
        """Drop the certificate of a model that is no longer active."""
        self._held.pop(model, None)
        self._manifests.pop(model, None)

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
