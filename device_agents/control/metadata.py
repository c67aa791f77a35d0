"""The files of the TUF repository for one refresh, fetched with one request where the controller can answer it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from device_agents.control.requests import RequestClient
from edgekit.errors import NotFoundError
from edgekit.transfer.newer_metadata import MAX_ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

_NEXT_ROOT = re.compile(r"([1-9]\d{0,8})\.root\.json")


class MetadataSource:
    """Gives the trust client the files that it asks for; the client verifies each of them.

    A refresh begins with the question for the next root. Here that becomes one request for the timestamp, which names
    the versions that the device has. A controller answers with all newer files at once; one of an older release answers
    with the timestamp, and then each file is requested.

    Args:
        requests: Sends requests to the controllers.
        known: Gives the versions by role that this device has verified.
    """

    def __init__(self, requests: RequestClient, known: Callable[[], Mapping[str, int]]) -> None:
        self._requests, self._known = requests, known
        self._needed: dict[str, int] = {}
        self._files: dict[str, bytes] = {}
        self._absent: set[str] = set()

    def need(self, roles: Iterable[str]) -> None:
        """Also ask for these roles in the next refresh; a wrong name costs nothing."""
        self._needed = dict.fromkeys(roles, 0)

    async def file(self, name: str) -> bytes:
        """One file.

        Raises:
            NotFoundError: the repository has no such file.
            UnavailableError: no controller answered, or none could.
            TransportError: the agent is stopping, or the request cannot be sent.
        """
        asked = _NEXT_ROOT.fullmatch(name)
        if asked and name not in self._files and name not in self._absent:
            await self._fetch(int(asked[1]) - 1)
        if name in self._absent:
            self._absent.discard(name)
            raise NotFoundError(f"the controller has no {name}")
        if name in self._files:
            return self._files.pop(name)  # once: the next refresh asks again
        return await self._requests.metadata(name)

    async def _fetch(self, root: int) -> None:
        self._files, self._absent = {}, set()
        known = {role: version for role, version in self._known().items() if 0 <= version < 2**31}
        have = {**self._needed, TARGETS: 0, SNAPSHOT: 0, **known, ROOT: root}
        answer = await self._requests.metadata_with(f"{TIMESTAMP}.json", dict(list(have.items())[-MAX_ROLES:]))
        self._needed = {}
        self._files, self._absent = {**answer.files, f"{TIMESTAMP}.json": answer.data}, answer.absent
