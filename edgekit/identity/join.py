"""Enrollment codes, with which devices enroll themselves, and the messages that such a code proves. Pure.

The code holds a secret, from which both sides derive the key of an HMAC (RFC 2104, SHA-256). So neither side needs to
trust the listener: a forged request or answer has a wrong code, and nothing secret is sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

import msgspec

from edgekit.bounds import MAX_DATE, number_fault
from edgekit.errors import DataError, RefusedError, SettingsError, VerificationError
from edgekit.mqtt.joining_messages import ClaimMessage
from edgekit.mqtt.topics import check_device_name, check_name

SECRET_BYTES = 20
TOKEN = re.compile(r"[a-z2-7]{8}")
_REQUEST, _ANSWER = b"request\0", b"answer\0"


class Code(msgspec.Struct, frozen=True):
    """A parsed enrollment code.

    Attributes:
        fleet: Name of the fleet.
        token: Id of the code, which is in the topic.
        key: The key that proves the code.
    """

    fleet: str
    token: str
    key: bytes


class StoredCode(msgspec.Struct, frozen=True):
    """An enrollment code as the controller keeps it.

    Attributes:
        token: Its id.
        key: The key that proves it.
        expires: Wall clock seconds.
        left: Devices that may still use it.
        name: The only name that it is for; empty for any.
        target: The only target profile that it is for; empty for any.
        labels: Labels of the devices that use it.
    """

    token: str
    key: bytes
    expires: float
    left: int
    name: str = ""
    target: str = ""
    labels: dict[str, str] = {}


def make_code(fleet: str, random: bytes) -> tuple[str, Code]:
    """A new code from at least SECRET_BYTES + 5 random bytes: its text, and what it says."""
    if len(random) < SECRET_BYTES + 5:
        raise ValueError(f"{len(random)} random bytes, expected {SECRET_BYTES + 5}")
    token = base64.b32encode(random[:5]).decode().lower()
    secret = base64.urlsafe_b64encode(random[5 : 5 + SECRET_BYTES]).decode().rstrip("=")
    text = f"{check_name(fleet)}.{token}.{secret}"
    return text, parse_code(text)


def parse_code(text: str) -> Code:
    """Parse a code as a person types it.

    Raises:
        SettingsError: it is no code.
    """
    parts = text.strip().split(".")
    try:
        fleet, token, secret = parts
        raw = base64.b64decode(secret + "=" * (-len(secret) % 4), altchars=b"-_", validate=True)
        check_name(fleet)
        if not TOKEN.fullmatch(token) or len(raw) != SECRET_BYTES:
            raise ValueError("a part is too long or too short")
    except (ValueError, binascii.Error) as error:
        raise SettingsError(
            "the enrollment code cannot be read, expected FLEET.ID.SECRET",
            advice="Copy it whole from the output of: edgekit device code",
        ) from error
    return Code(fleet, token, hashlib.sha256(b"edgekit enrollment code\0" + raw).digest())


def sign_request(body: bytes, key: bytes) -> ClaimMessage:
    """A device's message with the proof of its code."""
    return ClaimMessage(body, _mac(_REQUEST, body, key))


def sign_answer(body: bytes, key: bytes) -> ClaimMessage:
    """The controller's message with the proof of the code."""
    return ClaimMessage(body, _mac(_ANSWER, body, key))


def open_request(message: ClaimMessage, key: bytes) -> bytes:
    """The body of a device's message. Raises VerificationError for a wrong code."""
    return _opened(message, _REQUEST, key)


def open_answer(message: ClaimMessage, key: bytes) -> bytes:
    """The body of the controller's message. Raises VerificationError for a wrong code."""
    return _opened(message, _ANSWER, key)


def check_use(code: StoredCode, name: str, target: str, now: float) -> None:
    """Check that a device may use a code.

    Args:
        code: The code.
        name, target: What the device asks for.
        now: Wall clock seconds.

    Raises:
        RefusedError: it has expired, is used up, or is for another name or target.
        DataError: the name is not a device's name.
    """
    try:
        check_device_name(name)
    except ValueError as error:
        raise DataError(str(error)) from error
    if now >= code.expires:
        raise RefusedError(f"enrollment code {code.token} has expired", advice="Ask for a new code.")
    if code.left <= 0:
        raise RefusedError(f"enrollment code {code.token} is used up", advice="Ask for a new code.")
    for word, wanted, found in (("device", code.name, name), ("target", code.target, target)):
        if wanted and wanted != found:
            raise RefusedError(f"enrollment code {code.token} is for {word} {wanted!r}, not {found!r}")


def check_limits(expires: float, quota: int, now: float) -> None:
    """Check the limits of a new code. Raises SettingsError."""
    faults = [number_fault("expires", expires, now, MAX_DATE), number_fault("quota", quota, 1, 100_000)]
    if found := [fault for fault in faults if fault]:
        raise SettingsError("; ".join(found))


def _mac(purpose: bytes, body: bytes, key: bytes) -> bytes:
    return hmac.new(key, purpose + body, hashlib.sha256).digest()


def _opened(message: ClaimMessage, purpose: bytes, key: bytes) -> bytes:
    if not hmac.compare_digest(message.mac, _mac(purpose, message.body, key)):
        raise VerificationError("the message was not made with this enrollment code")
    return message.body
