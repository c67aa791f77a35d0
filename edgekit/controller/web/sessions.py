"""Sessions of browsers: a random cookie for each login, kept in memory, so that a restart asks for a new login."""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import NamedTuple

SESSION_SECONDS = 12 * 3600.0
MAX_SESSIONS = 1000


class Session(NamedTuple):
    """A login: the token, which is looked up anew for every request, the value against forged forms, and its end."""

    token: str
    csrf: str
    ends: float


class Sessions:
    """The open sessions of one controller."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, token: str, now: float) -> str:
        """Open a session for the owner of `token` at `now` (monotonic seconds); returns the value of its cookie."""
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions = {key: one for key, one in self._sessions.items() if one.ends > now}
            while len(self._sessions) >= MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_key(cookie)] = Session(token, secrets.token_urlsafe(32), now + SESSION_SECONDS)
        return cookie

    def get(self, cookie: str, now: float) -> Session | None:
        """The session of a cookie; None if there is none, or it has ended."""
        found = self._sessions.get(_key(cookie))
        return found if found is not None and found.ends > now else None

    def close(self, cookie: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(_key(cookie), None)


def _key(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()  # a lookup must not compare the secret itself
