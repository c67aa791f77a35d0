"""The service of webhooks: posts what happened to each receiver, signed, and again until it has it.

Signatures are those of the Standard Webhooks specification, so receivers can verify them with its libraries.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import UnavailableError
from edgekit.protocols import Clock
from edgekit.state.webhooks import MAX_RETRY_SECONDS, SECRET_PREFIX

if TYPE_CHECKING:
    from edgekit.state import FleetState
    from edgekit.state.webhooks import Batch, Notice

log = logging.getLogger(__name__)

BATCH = 50
POLL_SECONDS = 1.0
LEASE_SECONDS = 120.0  # another controller continues so long after this one died
FIRST_RETRY_SECONDS = 5.0

Post = Callable[[str, bytes, Mapping[str, str]], int]


def no_post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """For a controller that posts nothing."""
    raise UnavailableError("this controller posts to no webhook")


def retry_seconds(failures: int) -> float:
    """Time until the next attempt after this number of failures in a row: it doubles, up to an hour."""
    return min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(max(0, failures - 1), 30))


def signed_headers(secret: str, identity: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a delivery, by the Standard Webhooks specification 1.0.

    Args:
        secret: The webhook's key.
        identity: Id of the notice.
        at: Wall clock seconds of this attempt.
        body: The bytes that are posted.
    """
    key = _key(secret)
    signature = hmac.new(key, f"{identity}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": identity,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


class WebhookService:
    """Delivers the notices of a fleet, beside the rounds of the controller, which no slow receiver may delay.

    Args:
        state, clock: As Controller.
        post: Posts a body to a URL and returns the status; raises UnavailableError without an answer. Blocks.
        leading: False while another controller delivers.

    Attributes:
        deliveries, failures: Attempts that succeeded, and that did not.
    """

    def __init__(
        self, *, state: FleetState, clock: Clock, post: Post, leading: Callable[[], bool] = lambda: True
    ) -> None:
        self._state, self._clock, self._post, self._leading = state, clock, post, leading
        self._worker: asyncio.Task[None] | None = None
        self.deliveries = self.failures = 0

    async def start(self) -> None:
        """Begin to deliver."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Stop delivering; an attempt in progress may end as a second delivery later."""
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                if self._leading():
                    await self.round()
            except UnavailableError as error:
                log.warning("webhooks will be delivered later: %s", error)
            except Exception:  # supervision boundary, counted: an unexpected error must not end the worker
                self.failures += 1
                log.exception("webhooks could not be delivered")
            await asyncio.sleep(POLL_SECONDS)

    async def round(self) -> None:
        """Deliver what is due.

        Raises:
            UnavailableError: the database did not answer; the next round repeats the work.
        """
        batches = await asyncio.to_thread(self._state.webhooks.take, self._clock.wall(), LEASE_SECONDS, BATCH)
        await asyncio.gather(*(asyncio.to_thread(self._deliver, batch) for batch in batches))

    def _deliver(self, batch: Batch) -> None:
        """Post one notice after the other; stop at the first one that fails, so that their order stays."""
        table, started, failures = self._state.webhooks, self._clock.monotonic(), batch.failures
        for notice, reached in batch.notices:
            if not self._leading() or self._clock.monotonic() - started > LEASE_SECONDS / 2:
                table.release(batch.webhook)
                return
            if fault := self._attempt(batch, notice):
                fault = f"{notice.id}: {fault}"
                self.failures += 1
                wait = retry_seconds(failures + 1)
                log.warning("webhook %d: %s; next attempt in %.0f s", batch.webhook, fault, wait)
                table.failed(batch.webhook, fault, self._clock.wall() + wait)
                return
            self.deliveries += 1
            failures = 0
            now = self._clock.wall()
            table.delivered(batch.webhook, reached, now, now + LEASE_SECONDS)
        table.release(batch.webhook, batch.reached)

    def _attempt(self, batch: Batch, notice: Notice) -> str:
        """Post a notice; returns why the receiver has not got it, empty if it has."""
        body = msgspec.json.encode(notice, order="sorted")
        try:
            status = self._post(batch.url, body, signed_headers(batch.secret, notice.id, int(self._clock.wall()), body))
        except UnavailableError as error:
            return str(error)
        return "" if 200 <= status < 300 else f"the receiver answered {status}"


def _key(secret: str) -> bytes:
    """The key of a secret: what follows the prefix, as base64 with padding or without."""
    text = secret.removeprefix(SECRET_PREFIX)
    return base64.b64decode(text + "=" * (-len(text) % 4))
