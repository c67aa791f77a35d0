"""A small HTTP client for the controller's web application: sends exactly the headers that a test names."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit


class Answer(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        """Its body as JSON."""
        return json.loads(self.text)


class Client:
    """Sends requests to one server, with a token or with the cookie of a login."""

    def __init__(self, url: str, *, token: str = "", cookie: str = "") -> None:
        self.address = urlsplit(url).netloc
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.headers |= {"Cookie": cookie} if cookie else {}

    def get(self, path: str, **headers: str) -> Answer:
        """GET a path."""
        return self.send("GET", path, headers=headers)

    def post(self, path: str, value: Any = None, **headers: str) -> Answer:
        """POST a value as JSON."""
        body = json.dumps({} if value is None else value).encode()
        return self.send("POST", path, body, {"Content-Type": "application/json", **headers})

    def form(self, path: str, fields: dict[str, str], **headers: str) -> Answer:
        """POST a form."""
        body = urlencode(fields).encode()
        return self.send("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded", **headers})

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Send any request; underscores in names of headers stand for dashes."""
        connection = http.client.HTTPConnection(self.address, timeout=30.0)
        try:
            named = {name.replace("_", "-"): text for name, text in (headers or {}).items()}
            connection.request(method, path, body, {**self.headers, **named})
            reply = connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode())
        finally:
            connection.close()
