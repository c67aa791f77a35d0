"""Posts to receivers of webhooks by HTTP."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from edgekit import __version__
from edgekit.errors import SettingsError, UnavailableError

TIMEOUT_SECONDS = 10.0
MAX_URL = 2000


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: a body with a signature must not go to an address that nobody chose."""

    def redirect_request(self, *arguments: Any) -> None:
        """Follow nothing."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Post a body and return the status of the answer, which is not read.

    Raises:
        UnavailableError: there is no answer within TIMEOUT_SECONDS.
    """
    named = {"User-Agent": f"edgekit/{__version__}", **headers}
    request = urllib.request.Request(url, body, named, method="POST")  # noqa: S310  # check_receiver allows HTTP only
    try:
        with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UnavailableError(f"the receiver cannot be reached: {reason}") from error


def check_receiver(url: str) -> str:
    """The URL of a receiver.

    Raises:
        SettingsError: it is not an address of HTTP or HTTPS.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.fragment
        fine = fine and parts.username is None and len(url) <= MAX_URL and url.isascii() and url.isprintable()
    except ValueError:
        fine = False
    if not fine or " " in url:
        raise SettingsError(f"the receiver is {url[:200]!r}, expected https://HOST/PATH or http://HOST/PATH")
    return url
