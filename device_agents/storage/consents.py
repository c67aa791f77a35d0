"""The user's answers to updates that ask for an agreement, in a small file; agent and command line both write it."""

from __future__ import annotations

import logging

import msgspec

from device_agents.deployment import Deployment, UpdateRecord
from edgekit.errors import DiskError, NotFoundError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)

FILE_NAME = "consents.json"
CONSENT, DECLINED = "consent", "declined"  # why a deployment waits: without an answer, and after a no


class Consent(msgspec.Struct, frozen=True):
    """The answer to one bundle: its digest, and whether the user agreed."""

    digest: str
    agreed: bool


_CONSENTS = msgspec.json.Decoder(dict[str, Consent])  # built at import, as in edgekit.mqtt.messages


class Consents:
    """The last answer for each model.

    Args:
        disk: The device's folder.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def get(self, model: str, digest: str) -> bool | None:
        """Whether the user agreed to a bundle; None where there is no answer. A file that cannot be read has none."""
        answer = self._read().get(model)
        return answer.agreed if answer is not None and answer.digest == digest else None

    def put(self, model: str, digest: str, agreed: bool) -> None:
        """Store an answer. Raises DiskError."""
        answers = {**self._read(), model: Consent(digest, agreed)}
        self._disk.write(FILE_NAME, msgspec.json.encode(answers))

    def forget(self, model: str) -> None:
        """Remove the answer for a model, if there is one. Raises DiskError."""
        answers = self._read()
        if answers.pop(model, None) is not None:
            self._disk.write(FILE_NAME, msgspec.json.encode(answers))

    def _read(self) -> dict[str, Consent]:
        try:
            return _CONSENTS.decode(self._disk.read(FILE_NAME)) if self._disk.exists(FILE_NAME) else {}
        except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("%s cannot be read, so nothing counts as agreed: %s", FILE_NAME, error)
            return {}


def asks_consent(model: str, state: UpdateRecord | None) -> Deployment:
    """The deployment of a model that asks for an agreement.

    Raises:
        NotFoundError: there is none.
    """
    deployment = state.offered or state.deployment if state is not None else None
    if deployment is None or not deployment.consent:
        raise NotFoundError(
            f"no update of model {model!r} asks for an agreement", advice="See: edgekit-agent status --config FILE"
        )
    return deployment
