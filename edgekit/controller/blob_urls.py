"""URLs from which devices can fetch blobs by HTTP: base URLs of web servers, and URLs that the store signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from edgekit.errors import SettingsError
from edgekit.registry import blob_name

SIGNED = "signed"
SIGNED_SECONDS = 3600


class SigningStore(Protocol):
    """A store that can sign URLs."""

    def signed_url(self, name: str, seconds: int) -> str:
        """A URL that lets anybody read the blob for this number of seconds."""
        ...


def blob_urls(setting: str, store: object) -> Callable[[str], list[str]]:
    """A function that returns the URLs of a blob for its digest.

    Args:
        setting: Base URLs, separated by commas. ``signed`` stands for a URL that the store signs. Empty for none.
        store: The registry's store.

    Raises:
        SettingsError: a part is neither a URL nor ``signed``, or the store cannot sign.
    """
    bases = [part.strip() for part in setting.split(",") if part.strip()]
    for base in bases:
        parts = urlsplit(base)
        if base == SIGNED and not hasattr(store, "signed_url"):
            raise SettingsError(
                f"blob_urls holds {SIGNED!r}, but this store cannot sign URLs",
                advice="Use s3://, gs:// or az://, or serve the registry's folder with a web server and set its URL.",
            )
        if base != SIGNED and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise SettingsError(f"blob_urls holds {base!r}, expected http://..., https://... or {SIGNED!r}")

    def urls_of(digest: str) -> list[str]:
        return [_url(base, digest, store) for base in bases]

    return urls_of


def _url(base: str, digest: str, store: object) -> str:
    name = blob_name(digest)
    if base != SIGNED:
        return f"{base.rstrip('/')}/{name}"
    signing: SigningStore = store  # type: ignore[assignment]  # blob_urls has checked this
    return signing.signed_url(name, SIGNED_SECONDS)
