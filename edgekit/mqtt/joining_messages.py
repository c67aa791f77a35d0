"""Wire messages of a device that joins with an enrollment code, and of one that renews its certificate.

`messages.py` has the envelope in which a device signs them, and decodes them.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import msgspec


class CertificateRequest(msgspec.Struct, frozen=True):
    """``request/certificate/<id>``: asks for a new TLS certificate; in an Envelope that the device has signed.

    Attributes:
        id: Id of the request.
        device, fleet: Names of the sender.
        csr: A certificate signing request for the device's name, DER.
    """

    id: str
    device: str
    fleet: str
    csr: bytes


class ClaimMessage(msgspec.Struct, frozen=True):
    """``claim/<token>`` and its answer: a ClaimRequest or a ClaimAnswer, and an HMAC that proves the code."""

    body: bytes
    mac: bytes


class ClaimRequest(msgspec.Struct, frozen=True):
    """The request of a new device to be enrolled.

    Attributes:
        id: Id of the request.
        name, target: Its name and target profile.
        key: Its Ed25519 public key, 32 bytes.
        csr: A certificate signing request for its name, DER.
        proof: An Envelope of a ClaimProof, signed with that key.
    """

    id: str
    name: str
    target: str
    key: bytes
    csr: bytes
    proof: bytes


class ClaimProof(msgspec.Struct, frozen=True):
    """The values that a new device signs with its own key: its name and the id of the enrollment code."""

    name: str
    token: str


class ClaimAnswer(msgspec.Struct, frozen=True):
    """The answer to a claim.

    Attributes:
        id: Id of the request.
        error, message: Class name and text of the error; empty for a device that is enrolled.
        fleet: Name of the fleet.
        certificate, ca: The device's certificate and the authority's, PEM.
        root: The first trusted TUF root.
        broker: URL of the broker for devices with a certificate; empty where the operator did not set it.
        sample_key: The operator's public key for samples, PEM; empty where there is none.
    """

    id: str
    error: str = ""
    message: str = ""
    fleet: str = ""
    certificate: bytes = b""
    ca: bytes = b""
    root: bytes = b""
    broker: str = ""
    sample_key: bytes = b""
