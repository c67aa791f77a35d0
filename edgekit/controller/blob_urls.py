"""Where devices can have blobs besides the broker: base URLs of web servers, and addresses that the store signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from edgekit.errors import SettingsError
from edgekit.registry import blob_name

SIGNED = "signed"
SIGNED_SECONDS = 3600


class SigningStore(Protocol):
    """A store that can sign an address of a blob."""

    def signed_url(self, name: str, seconds: int) -> str:
        """A URL under which anybody can read the blob for a while."""
        ...


def blob_urls(setting: str, store: object) -> Callable[[str], list[str]]:
    """What names the URLs of a blob by its digest.

    Args:
        setting: Base URLs, separated by commas; ``signed`` among them stands for what the store signs. Empty for none.
        store: The registry's.

    Raises:
        SettingsError: one is neither, or the store cannot sign.
    """
    places = [part.strip() for part in setting.split(",") if part.strip()]
    for place in places:
        parts = urlsplit(place)
        if place == SIGNED and not hasattr(store, "signed_url"):
            raise SettingsError(
                "blob_urls asks for signed URLs, and this store cannot sign any",
                advice="Use s3://, gs:// or az://, or serve the registry's folder and name its URL.",
            )
        if place != SIGNED and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise SettingsError(f"blob_urls holds {place!r}, expected http://..., https://... or {SIGNED!r}")

    def urls(digest: str) -> list[str]:
        return [_url(place, digest, store) for place in places]

    return urls


def _url(place: str, digest: str, store: object) -> str:
    name = blob_name(digest)
    if place != SIGNED:
        return f"{place.rstrip('/')}/{name}"
    signing: SigningStore = store  # type: ignore[assignment]  # seen when the setting was read
    return signing.signed_url(name, SIGNED_SECONDS)
