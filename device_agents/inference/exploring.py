"""Sends a small share of confident answers to the cloud tier too, and tests the certificate with what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from device_agents.inference import row_splitting
from device_agents.inference.cascade.certificates import Certificates
from device_agents.inference.cascade.certified import Held, News
from device_agents.inference.cloud.failures import FallbackError
from device_agents.inference.options import CloudOptions
from device_agents.inference.request import Request
from device_agents.inference.routing_rules import Reason
from edgekit.protocols import Clock, CloudAnswer
from edgekit.tensors import Array

if TYPE_CHECKING:
    from device_agents.inference.fallback import Fallback

See = Callable[[CloudAnswer | None, Array | None], None]
_CALLED = (Reason.CLOUD_FAILED, Reason.BYTES_REFUSED)  # other reasons say that the cloud tier was not called
MOST_SHOWN = 64  # characters of a digest; some servers send anything in its place
MOST_AT_ONCE = 2  # explorations; others are left out, so that they never hold back requests that need the cloud tier


class Explorer:
    """Explores confident answers after they were returned.

    Args:
        fallback: The cloud tier.
        options: Gives a model's options for the cloud tier.
        certificates: Where news are told.
        clock: Time for the daily limit.
        share: Share of the confident answers, 0 to 1.
        spread: Gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        fallback: Fallback,
        options: Callable[[str], CloudOptions],
        certificates: Certificates,
        clock: Clock,
        share: float,
        spread: Callable[[], float],
    ) -> None:
        self._fallback, self._options = fallback, options
        self._certificates, self._clock = certificates, clock
        self._share, self._spread = share, spread
        self._tasks: set[asyncio.Task[None]] = set()

    def consider(
        self, request: Request, held: Held, certified: Array, local: dict[str, Array], see: See = lambda *_: None
    ) -> bool:
        """Explore a confident answer, if chance and limits say so; returns at once.

        Of a request with several rows, one of the confident ones is explored.

        Args:
            request: An answered request.
            held: Its certificate.
            certified: The certificate's scores (N,) of its rows.
            local: The device's answer.
            see: Called with the cloud tier's answer and its rows, where it is explored; with None if there is none.

        Returns:
            True where it is explored.
        """
        confident = np.flatnonzero(certified >= held.certificate.threshold)
        chance = 1 - (1 - self._share) ** len(confident)
        if self._spread() >= chance or len(self._tasks) >= MOST_AT_ONCE:
            return False
        rows = None
        if len(certified) > 1:
            if not request.may_split(local, len(certified)):
                return False
            rows = np.zeros(len(certified), bool)
            rows[confident[min(int(self._spread() * len(confident)), len(confident) - 1)]] = True
        if not held.may_explore(self._clock.monotonic()):
            return False
        task = asyncio.get_running_loop().create_task(self._explore(request, held, local, rows, see))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _explore(
        self, request: Request, held: Held, local: dict[str, Array], rows: Array | None, see: See
    ) -> None:
        """Ask the cloud tier for the rows where `rows` (N,) is true; None asks for all."""
        output = held.certificate.output
        outgoing, expected = request.outgoing(self._options(request.model).cloud_inputs), request.expected
        expected = expected._replace(local=local)
        if rows is not None:
            outgoing, expected = request.part(outgoing, local, rows)
        expected = expected._replace(wanted=(output,))
        try:
            answer = await self._fallback.ask(  # a sure answer: with score 1 it never takes what an unsure one needs
                request.model, outgoing, left_seconds=None, expected=expected, score=1.0
            )
        except FallbackError as error:
            if error.reason not in _CALLED:  # a day without a link must not use up what tests the certificate
                held.not_explored()
            if error.reason is not Reason.BUDGET_PACE:  # which keeps sure answers first; unsure ones may still be sent
                held.cloud_failed()
            see(None, None)
            return
        own = expected.local
        if rows is None or request.session is None:
            see(answer, None)
        else:
            whole = row_splitting.joined(request.session.outputs, local, answer.outputs, rows)
            see(msgspec.structs.replace(answer, outputs=whole), rows)
        request.counters["explored"] += 1
        note_cloud(self._certificates, request.model, held, answer.digest, self._clock.monotonic())
        if answer.digest != held.certificate.bound.cloud_digest:
            return
        differs = bool((answer.outputs[output].argmax(-1) != own[output].argmax(-1)).any())
        request.counters["explored_differing"] += differs
        if held.explore(differs=differs):
            found, bound = held.explored, held.certificate.disagreement.upper
            message = (
                f"the certificate is refuted: {found.differing} of {found.count} kept answers differ from the cloud's, "
                f"certified were at most {bound:.1%}"
            )
            detail = {"id": held.certificate.id, "explored": found.count, "differing": found.differing}
            self._certificates.tell(News.REFUTED, request.model, message, detail)
        await self._certificates.explored(held)


def note_cloud(certificates: Certificates, model: str, held: Held, digest: str, now: float) -> None:
    """Note the digest of the cloud tier's answer, and tell when it is not that of the certified model.

    Args:
        certificates: Where it is told.
        model, held: The model and its certificate.
        digest: Of the answer, hex; empty for none.
        now: Monotonic seconds.
    """
    if held.cloud_answered(digest, now):
        wanted = held.certificate.bound.cloud_digest[:12]
        message = f"the cloud tier answers with {digest[:12] or 'no digest'}, certified was {wanted}"
        certificates.tell(
            News.CLOUD_CHANGED, model, message, {"id": held.certificate.id, "digest": digest[:MOST_SHOWN]}
        )
