"""Enrolls devices that send an enrollment code, and renews the certificates of enrolled ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from securesystemslib.signer import SSlibKey

from edgekit.errors import (
    ClockError,
    DataError,
    EdgekitError,
    NotFoundError,
    TransportError,
    UnavailableError,
    VerificationError,
)
from edgekit.identity.authority import Authority, parse_request
from edgekit.identity.join import check_use, open_request, sign_answer
from edgekit.mqtt import topics
from edgekit.mqtt.joining_messages import CertificateRequest, ClaimAnswer, ClaimMessage, ClaimProof, ClaimRequest
from edgekit.mqtt.messages import Answer, decode, encode
from edgekit.protocols import Clock, Message, Transport
from edgekit.rollout.cohort import Device
from edgekit.trust.envelopes import open_envelope
from edgekit.trust.keys import parse_public, public_pem

if TYPE_CHECKING:
    from edgekit.state import FleetState

log = logging.getLogger(__name__)

MAX_WAITING = 100


class JoinService:
    """Answers ``claim/<token>`` and ``request/certificate/<device>``.

    Args:
        fleet, transport, state, clock: As Controller.
        authority: Signs the certificates.
        root: The trusted TUF root, which new devices get.
        days: Lifetime of a certificate.
        broker: URL of the broker for devices with a certificate; empty where it is not set.
        sample_key: The operator's public key for samples, PEM; empty where there is none.
        known_target: True for the name of a target profile whose devices run the agent.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        state: FleetState,
        clock: Clock,
        authority: Authority,
        root: bytes,
        days: int,
        broker: str,
        known_target: Callable[[str], bool],
        sample_key: bytes = b"",
    ) -> None:
        self._fleet, self._transport, self._state, self._clock = fleet, transport, state, clock
        self._authority, self._root, self._days, self._known_target = authority, root, days, known_target
        self._broker, self._sample_key = broker, sample_key
        self._clock_fault: Callable[[], str] = str
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(MAX_WAITING)
        self._worker: asyncio.Task[None] | None = None
        self.refused = self.failures = 0

    def check_clock(self, fault: Callable[[], str]) -> None:
        """Sign nothing while `fault()`, called in a thread, says what is wrong with this machine's clock."""
        self._clock_fault = fault

    async def start(self) -> None:
        """Subscribe; controllers share the claims if the broker can."""
        self._worker = asyncio.get_running_loop().create_task(self._work())
        await self._transport.subscribe(topics.claim(self._fleet, "+"), self._put, group="controllers")
        filter_ = topics.request(self._fleet, "certificate", "+")
        await self._transport.subscribe(filter_, self._put, group="controllers")

    async def stop(self) -> None:
        """Stop answering."""
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    def _put(self, message: Message) -> None:
        if message.retained:
            return
        try:
            self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("a request for a certificate was dropped, because %d are waiting", MAX_WAITING)

    async def _work(self) -> None:
        while True:
            message = await self._waiting.get()
            try:
                await self._answer(message)
            except (TransportError, UnavailableError) as error:
                log.info("a request for a certificate was not answered, the device repeats it: %s", error)
            except EdgekitError as error:
                self.refused += 1
                log.warning("%s was refused: %s: %s", message.topic, type(error).__name__, error)
            except Exception:  # supervision boundary, counted: one request must not end the service
                self.failures += 1
                log.exception("%s could not be answered", message.topic)

    async def _answer(self, message: Message) -> None:
        token = topics.parse_claim(message.topic)
        if token is not None:
            payload = await asyncio.to_thread(self._claimed, token.token, message.payload)
            await self._transport.publish(topics.claim_answer(self._fleet, token.token), payload, qos=1)
            return
        where = topics.parse_request(message.topic)
        if where is not None:
            answer = await asyncio.to_thread(self._renewal, where.device, message.payload)
            await self._transport.publish(topics.answer(self._fleet, where.device), encode(answer), qos=1)

    def _claimed(self, token: str, payload: bytes) -> bytes:
        """The answer to a claim. Raises for a claim that does not prove its code: it gets no answer."""
        code = self._state.certificates.code(token)
        body = open_request(decode(payload, ClaimMessage), code.key)
        request = decode(body, ClaimRequest)
        try:
            answer = self._enrolled(token, request)
        except UnavailableError:
            raise
        except EdgekitError as error:
            log.warning("claim of %s with code %s was refused: %s", request.name[:64], token, error)
            advice = f". {error.advice}" if error.advice else ""
            answer = ClaimAnswer(request.id, error=type(error).__name__, message=f"{error}{advice}")
        return encode(sign_answer(encode(answer), code.key))

    def _enrolled(self, token: str, request: ClaimRequest) -> ClaimAnswer:
        self._check_clock()
        now = self._clock.wall()
        code = self._state.certificates.code(token)
        pem = public_pem(SSlibKey("", "ed25519", "ed25519", {"public": request.key.hex()}))
        try:
            repeated = self._state.devices.get(request.name).public_key.strip() == pem.strip()
        except NotFoundError:
            repeated = False
        limits = msgspec.structs.replace(code, left=max(code.left, 1)) if repeated else code  # it takes nothing
        check_use(limits, request.name, request.target, now)
        self._check_served(request.name)
        proof = open_envelope(request.proof, ClaimProof, parse_public(pem.encode()))
        if (proof.name, proof.token) != (request.name, token):
            raise VerificationError("the claim is not signed with the device's key")
        if not self._known_target(request.target):
            raise DataError(f"there is no target profile {request.target[:64]!r}", advice="See: edgekit targets")
        issued = self._authority.issue_client(parse_request(request.csr, request.name), request.name, self._days, now)
        device = Device(request.name, request.target, pem, enrolled=now)
        if self._state.certificates.claim(token, device, issued, now):
            log.info("%s enrolled itself with code %s", request.name, token)
        return ClaimAnswer(
            request.id,
            fleet=self._fleet,
            certificate=issued.pem.encode(),
            ca=self._authority.pem.encode(),
            root=self._root,
            broker=self._broker,
            sample_key=self._sample_key,
        )

    def _renewal(self, name: str, payload: bytes) -> Answer:
        """The answer to a request for a new certificate. Raises for one that the device's key has not signed."""
        device = self._state.devices.get(name)
        request = open_envelope(payload, CertificateRequest, parse_public(device.public_key.encode()))
        try:
            return self._renewed(name, request)
        except UnavailableError:
            raise
        except EdgekitError as error:
            log.warning("%s gets no certificate: %s", name, error)
            return Answer(request.id, error="bad-request", message=str(error)[:500])

    def _check_served(self, name: str) -> None:
        """Raise VerificationError for a device in quarantine. A removed one may enroll itself anew with a code."""
        found = self._state.lifecycle.refused().get(name)
        if found is not None and not found.removed:
            raise VerificationError(found.reason)

    def _check_clock(self) -> None:
        """Raise ClockError where certificates would have dates of a wrong clock."""
        if fault := self._clock_fault():
            raise ClockError(fault, advice="Set the clock of the controller's machine, and try again.")

    def _renewed(self, name: str, request: CertificateRequest) -> Answer:
        self._check_clock()
        self._check_served(name)
        now, issued = self._clock.wall(), self._state.certificates.all(name)
        valid = any(not one.revoked and one.expires > now for one in issued)
        if not valid and any(one.revoked for one in issued):  # its connection is open until it connects anew
            raise VerificationError(
                "its certificate was revoked; with a new enrollment code: edgekit-agent join --again"
            )
        if (request.device, request.fleet) != (name, self._fleet):
            raise DataError(f"the request is of {request.device[:64]!r} in fleet {request.fleet[:64]!r}")
        fresh = self._authority.issue_client(parse_request(request.csr, name), name, self._days, now)
        self._state.certificates.add(fresh)
        log.info("the certificate of %s was renewed", name)
        return Answer(request.id, data=msgspec.msgpack.encode([fresh.pem.encode(), self._authority.pem.encode()]))
