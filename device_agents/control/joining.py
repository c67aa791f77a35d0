"""Enrolls this device with a code: sends a claim until the controller answers, and checks the answer's proof."""

from __future__ import annotations

import asyncio
import secrets

from securesystemslib.signer import CryptoSigner

from edgekit.errors import EdgekitError, RefusedError, UnavailableError
from edgekit.identity.join import Code, open_answer, sign_request
from edgekit.mqtt import topics
from edgekit.mqtt.joining_messages import ClaimAnswer, ClaimMessage, ClaimProof, ClaimRequest
from edgekit.mqtt.messages import decode, encode
from edgekit.protocols import Message, Transport
from edgekit.trust.envelopes import seal
from edgekit.waiting import within

REPEAT_SECONDS = 3.0
CONNECT_SECONDS = 15.0


async def join_fleet(
    transport: Transport, code: Code, name: str, target: str, *, signer: CryptoSigner, csr: bytes, seconds: float
) -> ClaimAnswer:
    """Enroll this device.

    Args:
        transport: Connection to the claim listener, not started yet; it is stopped at the end.
        code: The enrollment code.
        name, target: Name and target profile of this device.
        signer: This device's private key.
        csr: Certificate signing request for its name, DER.
        seconds: How long to wait for the controller.

    Returns:
        The controller's answer, proven by the code.

    Raises:
        RefusedError: the controller refuses; the message says why.
        UnavailableError: no controller answered in time, or the broker cannot be reached.
    """
    public = bytes.fromhex(signer.public_key.keyval["public"])
    request = ClaimRequest(secrets.token_hex(8), name, target, public, csr, seal(ClaimProof(name, code.token), signer))
    payload = encode(sign_request(encode(request), code.key))
    answers: asyncio.Queue[Message] = asyncio.Queue(100)

    def take(message: Message) -> None:
        if not answers.full():
            answers.put_nowait(message)

    await transport.subscribe(topics.claim_answer(code.fleet, code.token), take)
    await transport.start()
    try:
        await transport.wait_connected(CONNECT_SECONDS)
        answer = await within(seconds, _exchange(transport, code, request.id, payload, answers))
    except asyncio.TimeoutError:
        raise UnavailableError(
            f"no controller of fleet {code.fleet} answered within {seconds:g} s",
            advice="Check that the code was copied whole and has not expired, and that a controller with the fleet's "
            "certificate authority runs.",
        ) from None
    finally:
        await asyncio.shield(transport.stop())
    if answer.error:
        raise RefusedError(f"the controller refused: {answer.message} ({answer.error})")
    return answer


async def _exchange(
    transport: Transport, code: Code, request_id: str, payload: bytes, answers: asyncio.Queue[Message]
) -> ClaimAnswer:
    while True:
        await transport.publish(topics.claim(code.fleet, code.token), payload, qos=1, expiry_seconds=30)
        try:
            while True:
                found = _opened(await within(REPEAT_SECONDS, answers.get()), code)
                if found is not None and found.id == request_id:
                    return found
        except asyncio.TimeoutError:
            continue


def _opened(message: Message, code: Code) -> ClaimAnswer | None:
    """The answer in a message; None for one that the code does not prove, such as of another device."""
    try:
        return decode(open_answer(decode(message.payload, ClaimMessage), code.key), ClaimAnswer)
    except EdgekitError:
        return None
